"""Projectors whose layers are no plain nn.Linear: adapters, quantised weights, weights that are elsewhere."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from zooprune import ZooPrune, sensitivity
from zooprune.profiling import Timings, recording
from zooprune.projectors import GatedMLP, NormedLinear, NormedMLP
from zooprune.sensitivity.jacobian import rank_correlation
from zooprune.sensitivity.running import is_differentiable
from zooprune.sensitivity.two_layer import as_two_layers
from zooprune.tokens import VisualTokens

WIDTH, HIDDEN, OUT = 64, 128, 64


class Model(nn.Module):
    """Stands for a model around a projector, for libraries that want one."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector = projector
        self.config = {"model_type": "custom"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projector(x)


class Plain(nn.Module):
    """Two layers, named as in LLaVA."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.activation, self.second = nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, OUT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.activation(self.first(x)))


def normed() -> NormedMLP:
    plain = Plain()
    merger = NormedMLP(nn.LayerNorm(WIDTH // 4), plain.first, plain.activation, plain.second, blocks=4)
    nn.init.normal_(merger.norm.weight, 1, 0.3)
    nn.init.normal_(merger.norm.bias)
    return merger


def one_block() -> NormedMLP:
    plain = Plain()
    return NormedMLP(nn.RMSNorm(WIDTH, eps=1e-6), plain.first, plain.activation, plain.second)


def gated() -> GatedMLP:
    return GatedMLP(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.functional.silu, nn.Linear(HIDDEN // 2, OUT))


KINDS: dict[str, Callable[[], nn.Module]] = {"plain": Plain, "four blocks": normed, "one block": one_block}


def made(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    return (KINDS | {"gated": gated})[kind]().to(dtype).requires_grad_(False).eval()


def features(rows: int = 60) -> torch.Tensor:
    x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(2))
    return x * torch.linspace(0.3, 3, rows)[:, None]


def expected(projector: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return what the closed form stands for, from the Jacobian of the module as it runs."""
    jacobians = torch.func.vmap(torch.func.jacrev(projector))(x)
    return jacobians.flatten(1).norm(dim=1) / WIDTH**0.5


def scored(projector: nn.Module, x: torch.Tensor, **options: object) -> tuple[torch.Tensor, dict[str, object]]:
    positions = torch.zeros(len(x), 4, dtype=torch.int64)
    timings = Timings()
    with recording(timings):
        scores = ZooPrune(keep=8, **options).score(VisualTokens(x, torch.zeros(len(x), 4), projector, positions))
    return scores, timings.notes


# Adapters.


def adapted(kind: str, **options: object):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["first", "second"], "lora_dropout": 0.1} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(Model(made(kind)), peft.LoraConfig(**options))
        model.add_adapter("other", peft.LoraConfig(**options))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.copy_(0.3 * torch.randn_like(value) + (value if "modules_to_save" in name else 0))
    return model.eval()


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_count_as_they_are_switched_merged_and_trained(kind, options):
    """One projector all along: whatever happens to its adapters, the scores are those of what it computes now."""
    model, x = adapted(kind, **options), features()
    projector = model.base_model.model.projector
    seen = []

    def check(note: str = "effective weights of peft Linear") -> None:
        scores, notes = scored(projector, x)
        torch.testing.assert_close(scores, expected(projector, x), rtol=2e-4, atol=1e-6)
        assert note in notes["closed_form"]
        for earlier in seen:
            assert not torch.allclose(scores, earlier, rtol=1e-3)
        seen.append(scores)

    check()
    model.set_adapter("other")
    check()
    with model.disable_adapter():
        check()
    # A step of training, in place.
    with torch.no_grad():
        projector.first.lora_A["other"].weight.add_(0.1)
    check()
    projector.second.scaling["other"] *= 2
    check()
    projector.first.merge()
    scores, _ = scored(projector, x)
    torch.testing.assert_close(scores, seen[-1], rtol=1e-4, atol=1e-6)
    if kind == "plain":
        merged = model.merge_and_unload().projector
        scores, notes = scored(merged, x)
        torch.testing.assert_close(scores, expected(merged, x), rtol=2e-4, atol=1e-6)
        assert notes["closed_form"] == "whole"


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_adapters_in_training_is_left_out(kind):
    model, x = adapted(kind), features()
    projector = model.base_model.model.projector
    quiet = sensitivity.closed_form(projector, x)
    model.train()
    assert torch.equal(sensitivity.closed_form(projector, x), quiet)
    assert projector.first.training


@pytest.mark.parametrize("saved", ["first", "second", "norm"])
def test_modules_trained_beside_adapters_count(saved):
    targets = ["second" if saved == "first" else "first"]
    model, x = adapted("four blocks", modules_to_save=[saved], target_modules=targets), features()
    projector = model.base_model.model.projector
    for adapter in ("default", "other"):
        model.set_adapter(adapter)
        torch.testing.assert_close(sensitivity.closed_form(projector, x), expected(projector, x), rtol=2e-4, atol=1e-6)


def test_a_whole_projector_trained_beside_adapters_counts():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = Model(made("plain"))
    model.head = nn.Linear(OUT, 3)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["head"], modules_to_save=["projector"]))
    projector, x = model.base_model.model.projector, features()
    with torch.no_grad():
        projector.modules_to_save["default"].first.weight.mul_(2)
    torch.testing.assert_close(sensitivity.closed_form(projector, x), expected(projector, x), rtol=2e-4, atol=1e-6)
    with model.disable_adapter():
        torch.testing.assert_close(sensitivity.closed_form(projector, x), expected(projector, x), rtol=2e-4, atol=1e-6)


# What no formula knows.


class Steered(nn.Module):
    """An affine layer with something added that is not affine."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.in_features = inner, inner.in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + 0.1 * torch.sin(3 * self.inner(x))


@pytest.mark.parametrize("layer", ["first", "second"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_is_not_affine_is_sampled(kind, layer):
    projector, x = made(kind), features()
    setattr(projector, layer, Steered(getattr(projector, layer)))
    scores, notes = scored(projector, x)
    assert notes == {"sensitivity": "sampled"}
    assert torch.equal(scores, sensitivity.jvp(projector, x))
    with pytest.raises(ValueError, match="jvp"):
        sensitivity.closed_form(projector, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hook_that_changes_the_output_is_not_overlooked(dtype):
    projector, x = made("plain", dtype), features()
    projector.register_forward_hook(
        lambda module, args, out: out + torch.nn.functional.pad(args[0] / 2, (0, OUT - WIDTH))
    )
    scores, notes = scored(projector, x)
    assert "closed_form" not in notes
    real = expected(lambda row: projector(row.to(dtype)).float(), x)
    # Sampled along 64 directions; without the hook, scores are less than half of it.
    torch.testing.assert_close(scores, real, rtol=3e-2, atol=0)


def test_a_norm_of_another_form_is_not_taken_for_one_that_is_known():
    class OnePlus(nn.RMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + nn.functional.rms_norm(x, x.shape[-1:], eps=self.eps)

    projector = made("one block")
    projector.norm = OnePlus(WIDTH, eps=1e-6)
    assert not sensitivity.has_closed_form(projector)
    scores, _ = scored(projector, features())
    assert torch.equal(scores, sensitivity.jvp(projector, features()))


# Quantised weights.


def torchao_int8(projector: nn.Module) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed: make test-extras")
    quantization.quantize_(projector, quantization.Int8WeightOnlyConfig())
    return projector


def torchao_int8_activations(projector: nn.Module) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed: make test-extras")
    quantization.quantize_(projector, quantization.Int8DynamicActivationInt8WeightConfig())
    return projector


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def torch_int8(projector: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(projector, {nn.Linear}, torch.qint8)


def bitsandbytes_(projector: nn.Module, kind: str, **options: object) -> nn.Module:
    layers = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: make test-extras").nn
    for name in ("first", "second"):
        layer = getattr(projector, name)
        packed = getattr(layers, kind)(layer.in_features, layer.out_features, **options)
        packed.load_state_dict(layer.state_dict())
        # Moving it packs it.
        setattr(projector, name, packed.requires_grad_(False).to("cpu"))
    return projector.eval()


QUANTISED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torchao int8": torchao_int8,
    "torchao int8 activations": torchao_int8_activations,
    "torch dynamic int8": torch_int8,
    "bitsandbytes int8": lambda projector: bitsandbytes_(projector, "Linear8bitLt", has_fp16_weights=False),
    "bitsandbytes nf4": lambda projector: bitsandbytes_(projector, "Linear4bit", quant_type="nf4"),
}


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning")
@pytest.mark.parametrize("quantise", QUANTISED.values(), ids=QUANTISED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [*KINDS, "gated"])
def test_quantised_projectors_are_scored_without_a_word(kind, dtype, quantise):
    if quantise is torch_int8 and dtype != torch.float32:
        pytest.skip("torch quantises float32 models only")
    whole, x = made(kind), features()
    real = expected(whole, x)
    projector = quantise(made(kind, dtype))
    scores, notes = scored(projector, x.to(dtype))
    # Four bits change a projector of this size more than eight.
    least = 0.98 if "nf4" in str(quantise) or "Linear4bit" in repr(projector) else 0.995
    assert rank_correlation(scores, real) >= (least if "closed_form" in notes else 0.95)
    assert (kind == "gated") == ("closed_form" not in notes)
    sampled = sensitivity.finite_difference(projector, x.to(dtype))
    assert rank_correlation(sampled, real) >= 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_quantised_alone_are_scored_exactly(kind, dtype):
    projector = torchao_int8(made(kind, dtype))
    expanded, x = made(kind, dtype).float(), features().to(dtype)
    for name in ("first", "second"):
        layer, packed = getattr(expanded, name), getattr(projector, name)
        layer.weight.copy_(packed.weight.dequantize(torch.float32))
    scores, notes = scored(projector, x)
    assert notes["closed_form"] == "whole, effective weights of Int8Tensor"
    torch.testing.assert_close(scores, expected(expanded.double(), x.double()).float(), rtol=2e-6, atol=0)


def test_derivatives_of_step_functions_are_refused():
    projector = torch_int8(made("gated"))
    assert not is_differentiable(projector, WIDTH)
    with pytest.raises(ValueError, match="finite_difference"):
        sensitivity.jvp(projector, features())
    scores, notes = scored(projector, features())
    assert notes["sensitivity"] == "sampled as the module runs"
    assert torch.equal(scores, sensitivity.finite_difference(projector, features()))


# Weights that are elsewhere.


def offloaded(projector: nn.Module, how: str, folder: object) -> nn.Module:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = Model(projector)
    if how == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    elif how == "disk":
        accelerate.disk_offload(model, str(folder), execution_device="cpu")
    else:
        accelerate.dispatch_model(
            model, {"projector": "disk"}, main_device="cpu", offload_dir=str(folder), force_hooks=True
        )
    assert all(value.is_meta for value in projector.parameters())
    return projector


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["cpu", "disk", "device map"])
@pytest.mark.parametrize("kind", [*KINDS, "gated"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_kept_elsewhere_are_scored_as_if_they_were_here(kind, how, dtype, tmp_path):
    here, away, x = made(kind, dtype), offloaded(made(kind, dtype), how, tmp_path), features().to(dtype)
    for options in ({}, {"estimator": "jvp"}, {"estimator": "finite_difference"}):
        assert torch.equal(scored(away, x, **options)[0], scored(here, x, **options)[0])
    if kind != "gated":
        assert scored(away, x)[1]["closed_form"] == "whole, offloaded weights"
    assert all(value.is_meta for value in away.parameters())


def test_changes_of_weights_kept_elsewhere_are_noticed():
    projector, x = offloaded(made("plain"), "cpu", None), features()
    before = sensitivity.closed_form(projector, x)
    projector.second._hf_hook.weights_map["weight"].mul_(2)
    torch.testing.assert_close(sensitivity.closed_form(projector, x), 2 * before)


def test_a_linear_projector_is_linear_however_it_is_kept(tmp_path):
    for how in (lambda p: p, torchao_int8, torch_int8, lambda p: offloaded(p, "cpu", tmp_path)):
        projector = how(nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, OUT)).requires_grad_(False))
        assert sensitivity.is_linear(projector, features())
    assert not sensitivity.is_linear(NormedLinear(nn.RMSNorm(WIDTH), nn.Parameter(torch.rand(WIDTH, OUT))), features())


# Compiled, and the module itself.


def test_compiled_projectors_are_scored_by_what_they_run():
    projector, x = made("plain"), features()
    plain = sensitivity.closed_form(projector, x)
    wrapped = torch.compile(projector)
    torch.testing.assert_close(sensitivity.closed_form(wrapped, x), plain)
    inside = copy.deepcopy(projector)
    inside.compile()
    torch.testing.assert_close(sensitivity.closed_form(inside, x), plain)
    torch.testing.assert_close(sensitivity.jvp(inside, x), sensitivity.jvp(projector, x))


def test_plain_layers_are_read_where_they_are():
    projector = made("plain", torch.bfloat16)
    parts = as_two_layers(projector)
    assert parts is not None
    assert parts.first is projector.first and parts.second is projector.second and parts.origins == ()
