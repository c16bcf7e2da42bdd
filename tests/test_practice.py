"""Models as people run them: with LoRA, quantised, offloaded. What is pruned is what the plain model would keep."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from peft import LoraConfig, get_peft_model
from torch import nn

from zoo_of_models import CASES
from zooprune import ZooPrune, get_pruner, prune, sensitivity
from zooprune.families import find_family
from zooprune.sensitivity.jacobian import rank_correlation

# peft asks transformers' models by a name that goes away.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
GREEDY = {"max_new_tokens": 3, "do_sample": False}
#: Families whose closed form is exact, with what their projector's two layers are called.
LAYERS = {
    "llava": ("linear_1", "linear_2"), "vipllava": ("linear_1", "linear_2"), "llava_next": ("linear_1", "linear_2"),
    "internvl": ("linear_1", "linear_2"), "mistral3": ("linear_1", "linear_2"), "qwen2_5_vl": ("mlp.0", "mlp.2"),
    "qwen3_vl": ("linear_fc1", "linear_fc2"),
}  # fmt: skip


def projector_of(model):
    inner = model.model
    return inner.visual.merger if hasattr(inner, "visual") else inner.multi_modal_projector


def kept(model, inputs, pruner):
    with torch.no_grad(), prune(model, pruner) as session:
        said = model.generate(**inputs, **GREEDY)
    return said, [image.selection for image in session.reports[-1].images], session.reports[-1].notes


def offloaded(model, how, folder):
    if how == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    elif how == "disk":
        disk_offload(model, str(folder), execution_device=torch.device("cpu"))
    elif how == "device map":
        parts = [name for name, _ in model.model.named_children()]
        places = {f"model.{name}": "disk" if name == "multi_modal_projector" else "cpu" for name in parts}
        dispatch_model(model, {**places, "lm_head": "cpu"}, main_device="cpu", offload_dir=str(folder))
    else:
        cpu_offload(projector_of(model), execution_device=torch.device("cpu"))
    return model


@pytest.mark.parametrize("how", ["cpu", "disk", "device map", "projector alone"])
@pytest.mark.parametrize("method", ["zoo", "visionzip", "cdpruner"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl", "gemma3", "aya_vision"])
def test_offloaded_models(name, method, how, tmp_path):
    if how == "device map" and name == "qwen2_5_vl":
        pytest.skip("its merger is inside of its tower, which a device map does not split")
    case = CASES[name]
    plain = case.model()
    inputs = case.make(plain, [[0], [case.kinds - 1, 0]])
    expected, before, _ = kept(plain, inputs, get_pruner(method, keep=3))
    model = offloaded(case.model(), how, tmp_path)
    said, after, _ = kept(model, inputs, get_pruner(method, keep=3))
    assert [one.index.tolist() for one in after] == [one.index.tolist() for one in before]
    assert torch.equal(said, expected)


def lora(model, layers, **options):
    """Return the model with LoRA on its projector's layers, whose weights are random and large."""
    torch.manual_seed(5)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=list(layers), **options))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "lora_magnitude" in name:
                parameter.normal_(1.0 if "magnitude" in name else 0.0, 0.3)
    return wrapped


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", list(LAYERS))
def test_lora_on_the_projector_is_scored_as_it_is_merged(name, dora):
    """Against the model into which the adapter was merged, whose projector is plain again."""
    case = CASES[name]
    model = case.model()
    inputs = case.make(model, [[0]])
    _, untouched, _ = kept(model, inputs, ZooPrune(keep=3))
    wrapped = lora(model, LAYERS[name], use_dora=dora)
    _, adapted, notes = kept(wrapped.get_base_model(), inputs, ZooPrune(keep=3))
    with wrapped.disable_adapter():
        _, disabled, _ = kept(wrapped.get_base_model(), inputs, ZooPrune(keep=3))
    merged = wrapped.merge_and_unload()
    _, expected, _ = kept(merged, inputs, ZooPrune(keep=3))
    torch.testing.assert_close(adapted[0].scores, expected[0].scores, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(disabled[0].scores, untouched[0].scores, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(adapted[0].scores, untouched[0].scores, rtol=1e-2)
    assert notes


def test_switching_adapters_is_noticed():
    case = CASES["llava"]
    wrapped = lora(case.model(), LAYERS["llava"])
    wrapped.add_adapter("other", LoraConfig(r=4, target_modules=list(LAYERS["llava"])))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B.other" in name:
                parameter.normal_(0, 0.3)
    model, scores = wrapped.get_base_model(), {}
    inputs = case.make(model, [[0]])
    for adapter in ("default", "other", "default", "other"):
        wrapped.set_adapter(adapter)
        _, found, _ = kept(model, inputs, ZooPrune(keep=3))
        assert adapter not in scores or torch.equal(scores[adapter], found[0].scores)
        scores[adapter] = found[0].scores
    assert not torch.allclose(scores["default"], scores["other"], rtol=1e-2)


def test_a_projector_trained_beside_lora_is_the_one_that_is_scored():
    case = CASES["llava"]
    model = case.model()
    inputs = case.make(model, [[0]])
    _, before, _ = kept(model, inputs, ZooPrune(keep=3))
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["multi_modal_projector"])
    wrapped = get_peft_model(model, config)
    _, copied, _ = kept(wrapped.get_base_model(), inputs, ZooPrune(keep=3))
    torch.testing.assert_close(copied[0].scores, before[0].scores, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        for parameter in wrapped.base_model.model.model.multi_modal_projector.modules_to_save.parameters():
            parameter.mul_(1.5)
    _, trained, _ = kept(wrapped.get_base_model(), inputs, ZooPrune(keep=3))
    assert not torch.allclose(trained[0].scores, before[0].scores, rtol=1e-2)


def test_calls_through_peft_are_pruned():
    case = CASES["llava"]
    wrapped = lora(case.model(), LAYERS["llava"])
    inputs = case.make(wrapped.get_base_model(), [[0]])
    with pytest.raises(TypeError, match="get_base_model"):
        prune(wrapped, "zoo")
    with prune(wrapped.get_base_model(), ZooPrune(keep=3)) as session:
        wrapped.generate(**inputs, **GREEDY)
    assert session.reports[0].kept == 3


@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl", "gemma3"])
def test_weights_in_eight_bits(name):
    """Weights of torchao are dequantised, so that the scores are exactly those of the rounded weights."""
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed: make test-extras")
    case = CASES[name]
    model = case.model()
    inputs = case.make(model, [[0]])
    _, before, _ = kept(model, inputs, ZooPrune(keep=3))
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), filter_fn=lambda module, _: isinstance(module, nn.Linear))
    _, after, notes = kept(model, inputs, ZooPrune(keep=3))
    assert rank_correlation(after[0].scores, before[0].scores) > 0.9
    assert name == "gemma3" or notes


@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_layers_that_quantise_what_they_read(name):
    case = CASES[name]
    model = case.model()
    inputs = case.make(model, [[0]])
    _, before, _ = kept(model, inputs, ZooPrune(keep=3))
    projector = projector_of(model)
    torch.ao.quantization.quantize_dynamic(projector, {nn.Linear}, dtype=torch.qint8, inplace=True)
    _, after, notes = kept(model, inputs, ZooPrune(keep=3))
    assert rank_correlation(after[0].scores, before[0].scores) > 0.8
    assert notes


def test_the_tail_is_made_of_the_layers_there_are_now():
    """A layer that is replaced after the first call is the one that is scored."""
    for name in LAYERS:
        case = CASES[name]
        model = case.model()
        inputs = case.make(model, [[0]])
        kept(model, inputs, ZooPrune(keep=3))
        projector, second = projector_of(model), LAYERS[name][1]
        old = projector.get_submodule(second)
        new = nn.Linear(old.in_features, old.out_features)
        nn.init.normal_(new.weight)
        parent, _, last = second.rpartition(".")
        setattr(projector.get_submodule(parent), last, new)
        _, after, _ = kept(model, inputs, ZooPrune(keep=3))
        tokens = find_family(model).encode(model, "image", inputs).visuals[0].tokens
        rows = tokens.features.double()
        state = {key: value.double() for key, value in tokens.projector.state_dict().items()}

        def wide(x, projector=tokens.projector, state=state):
            return torch.func.functional_call(projector, state, (x,))

        jacobians = [torch.autograd.functional.jacobian(wide, row[None])[0, :, 0] for row in rows]
        exact = torch.stack([one.norm() for one in jacobians]) / rows.shape[1] ** 0.5
        torch.testing.assert_close(after[0].scores.double(), exact, rtol=1e-3, atol=0)
        assert sensitivity.has_closed_form(tokens.projector)
