from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlavaConfig
from transformers.activations import ACT2FN
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from zooprune import sensitivity
from zooprune.projectors import NormedMLP
from zooprune.sensitivity import estimators, jacobian, weight_cache
from zooprune.sensitivity.jacobian import AboutMeans, LowRank, form_of, rank_correlation

GOLDEN = np.load(Path(__file__).parent / "data" / "zoo_sensitivity.npz")


def golden(case: int) -> dict[str, np.ndarray]:
    prefix = f"case{case}_"
    return {name.removeprefix(prefix): GOLDEN[name] for name in GOLDEN.files if name.startswith(prefix)}


def golden_projector(case: dict[str, np.ndarray]) -> nn.Sequential:
    w1, w2 = torch.tensor(case["w1"]), torch.tensor(case["w2"])
    projector = nn.Sequential(nn.Linear(*w1.shape[::-1]), nn.GELU(), nn.Linear(*w2.shape[::-1]))
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    values = (w1, torch.tensor(case["b1"]), w2, torch.tensor(case["b2"]))
    projector.load_state_dict(dict(zip(names, values, strict=True)))
    return projector


def unit(case: dict[str, np.ndarray]) -> torch.Tensor:
    raw = torch.tensor(case["directions_raw"])
    return raw / (raw.norm(dim=-1, keepdim=True) + 1e-12)


CASES = range(int(GOLDEN["num_cases"]))


@pytest.mark.parametrize("number", CASES)
def test_finite_differences_agree_with_the_official_ones(number):
    case = golden(number)
    mine = sensitivity.finite_difference(
        golden_projector(case), torch.tensor(case["features"]), directions=unit(case), step=float(case["h"])
    )
    # Central differences in float32 lose digits to cancellation; the official float32 run loses as many.
    official = np.abs(case["sens_fd32"] / case["sens_fd64"] - 1).max()
    assert np.abs(mine.numpy() / case["sens_fd64"] - 1).max() <= 1.5 * official + 1e-6


@pytest.mark.parametrize("number", CASES)
def test_directional_derivatives_agree_with_float64(number):
    case = golden(number)
    mine = sensitivity.jvp(golden_projector(case), torch.tensor(case["features"]), directions=unit(case))
    np.testing.assert_allclose(mine, case["sens_jvp64"], rtol=2e-6)


def test_given_directions_are_brought_to_unit_length():
    case = golden(0)
    projector, x, raw = golden_projector(case), torch.tensor(case["features"]), torch.tensor(case["directions_raw"])
    torch.testing.assert_close(
        sensitivity.jvp(projector, x, directions=raw), sensitivity.jvp(projector, x, directions=unit(case))
    )


def mlp(activation: nn.Module | None = None, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 20), activation or nn.GELU(), nn.Linear(20, 14)).to(dtype)


def features(rows: int = 9, seed: int = 4) -> torch.Tensor:
    return torch.randn(rows, 12, generator=torch.Generator().manual_seed(seed))


# Those with parameters of their own are no fixed function of their input and take the general path.
ACTIVATIONS = sorted(name for name in ACT2FN if name not in ("prelu", "xielu"))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_closed_form_is_the_frobenius_norm_of_the_jacobian(name):
    projector, x = mlp(ACT2FN[name]), features()
    wide = mlp(ACT2FN[name]).double()
    jacobians = [torch.autograd.functional.jacobian(wide, row) for row in x.double()]
    expected = torch.stack([jacobian.norm() / 12**0.5 for jacobian in jacobians])
    torch.testing.assert_close(sensitivity.closed_form(projector, x).double(), expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["gelu", "quick_gelu", "silu"])
def test_the_projector_of_transformers_is_known(name, bias, dtype):
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 12},
        text_config={"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2},
        projector_hidden_act=name,
        multimodal_projector_bias=bias,
    )
    projector, x = LlavaMultiModalProjector(config).to(dtype), features().to(dtype)
    wide = LlavaMultiModalProjector(config).double()
    wide.load_state_dict({key: value.double() for key, value in projector.state_dict().items()})
    jacobians = [torch.autograd.functional.jacobian(wide, row) for row in x.double()]
    expected = torch.stack([jacobian.norm() / 12**0.5 for jacobian in jacobians])
    torch.testing.assert_close(sensitivity.closed_form(projector, x).double(), expected, rtol=2e-5, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10**6), st.sampled_from(["finite_difference", "jvp", "closed_form"]))
def test_tokens_are_scored_one_by_one_in_any_order(rows, seed, name):
    estimate, projector, x = getattr(sensitivity, name), mlp(), features(rows, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    together = estimate(projector, x)
    torch.testing.assert_close(estimate(projector, x[order]), together[order], rtol=1e-4, atol=0)
    torch.testing.assert_close(estimate(projector, x[:1]), together[:1], rtol=1e-4, atol=0)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 100), st.sampled_from(["finite_difference", "jvp", "closed_form"]))
def test_the_outputs_scale_is_the_sensitivitys(scale, name):
    estimate, projector, x = getattr(sensitivity, name), mlp(), features()
    before = estimate(projector, x)
    with torch.no_grad():
        projector[2].weight.mul_(scale)
    # A constant added to the output moves nothing.
    with torch.no_grad():
        projector[2].bias.zero_()
    torch.testing.assert_close(estimate(projector, x), scale * before, rtol=1e-3, atol=0)


def test_the_estimators_approach_each_other():
    projector, x = mlp(), features(40)
    exact = sensitivity.closed_form(projector, x)
    derivative = sensitivity.jvp(projector, x, directions=4000)
    difference = sensitivity.finite_difference(projector, x, directions=4000)
    torch.testing.assert_close(difference, derivative, rtol=1e-3, atol=0)
    # The mean of a norm is below the root of its mean square, by little.
    assert bool((derivative < exact).all())
    assert torch.corrcoef(torch.stack([derivative, exact]))[0, 1] > 0.98


def test_low_rank_grows_exact():
    projector, x = mlp(), features()
    full = sensitivity.closed_form(projector, x)
    errors = [float((sensitivity.closed_form(projector, x, rank=r) - full).abs().max()) for r in (1, 10, 20, 50)]
    assert errors[0] > errors[1] > errors[2]
    assert max(errors[2:]) < 1e-5


def test_the_diagonal_of_the_low_rank_form_is_exact():
    roots = torch.randn(2, 30, 40, generator=torch.Generator().manual_seed(0))
    grams = roots @ roots.mT
    form = LowRank.of(tuple(grams), 5)
    torch.testing.assert_close(form.residuals + form.columns.square().sum(-1), grams.diagonal(dim1=1, dim2=2).T)


def wide(hidden: int = 512) -> nn.Sequential:
    """A projector wide enough for "auto" to weigh up ranks; its directions matter less and less, as trained ones do."""
    torch.manual_seed(7)
    projector = nn.Sequential(nn.Linear(12, hidden), nn.GELU(), nn.Linear(hidden, 14)).requires_grad_(False)
    projector[0].weight *= 0.6 ** torch.arange(12)
    projector[2].weight *= 0.6 ** torch.arange(14)[:, None]
    return projector


def in_float64(projector: nn.Sequential, x: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the diagonal-plus-low-rank form with the best columns there are, from an eigendecomposition."""
    first, act, second = copy.deepcopy(projector).double()
    gram = (first.weight @ first.weight.T) * (second.weight.T @ second.weight)
    values, vectors = torch.linalg.eigh(gram)
    columns = vectors[:, -rank:] * values[-rank:].clamp_min(0).sqrt()
    residual = gram.diagonal() - columns.square().sum(-1)
    hidden = first(x.double()).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(act(hidden).sum(), hidden)
    return ((slopes.square() @ residual + (slopes @ columns).square().sum(-1)) / 12).sqrt()


@pytest.mark.parametrize("rank", [24, 64])
def test_low_rank_is_nearly_the_best_there_is(rank):
    projector, x = wide(), features(40)
    mine = sensitivity.closed_form(projector, x, rank=rank).double()
    torch.testing.assert_close(mine, in_float64(projector, x, rank), rtol=1e-3, atol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 3), st.integers(1, 20), st.integers(0, 10**6))
def test_about_means_is_its_definition(rows, strips, grams, chunk, seed):
    """Against projections written out in float64; with as many means as rows it is the whole."""
    generator = torch.Generator().manual_seed(seed)
    roots, slopes = torch.randn(grams, 30, 30, generator=generator), torch.rand(rows, 30, generator=generator)
    gram = roots @ roots.mT
    with mock.patch.object(jacobian, "_CHUNK", chunk):
        found = AboutMeans(tuple(gram), strips)(slopes).double().T
    wide, gram = slopes.double(), gram.double()
    means = torch.stack([strip.mean(0) for strip in wide.tensor_split(min(strips, rows))])
    along = wide @ torch.linalg.pinv(means) @ means
    rest = wide - along
    expected = ((along + 2 * rest) @ gram * along).sum(-1) + gram.diagonal(dim1=1, dim2=2) @ rest.square().T
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)
    if strips >= rows:
        torch.testing.assert_close(found, ((wide @ gram) * wide).sum(-1), rtol=1e-3, atol=1e-2)


def test_auto_ranks_like_the_whole(monkeypatch):
    projector, x = wide(1024), features(200)
    form = form_of(projector, "auto")
    exact, cheap = sensitivity.closed_form(projector, x), sensitivity.closed_form(projector, x, rank="auto")
    ranks = torch.stack([scores.argsort().argsort().double() for scores in (exact, cheap)])
    assert form.name in ("about 16 means", "about 64 means") and 0.999 <= form.correlation < 1
    assert torch.corrcoef(ranks)[0, 1] >= 0.999
    assert not torch.equal(cheap, exact)
    monkeypatch.setattr(jacobian, "_LEAST_CORRELATION", 2.0)
    weight_cache.forget(projector)
    assert form_of(projector, "auto").name == "whole"
    assert torch.equal(sensitivity.closed_form(projector, x, rank="auto"), exact)


def test_auto_runs_the_first_layer_as_the_model_does():
    """In the weights' own dtype, which is what sharing its output gives."""
    projector, x = wide(1024).bfloat16(), features(300).bfloat16()
    alone = sensitivity.closed_form(projector, x, rank="auto")
    assert torch.equal(alone, sensitivity.closed_form(projector, x, rank="auto", hidden=projector[0](x)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_auto_ranks_like_the_whole_where_blocks_are_normed(dtype):
    first, act, second = wide(1024)
    merger = NormedMLP(nn.LayerNorm(3), first, act, second, blocks=4).to(dtype).requires_grad_(False)
    merger.norm.weight.uniform_(0.5, 1.5)
    merger.norm.bias.normal_()
    x = features(300).to(dtype)
    form = form_of(merger, "auto")
    assert form.own_layer and 0.999 <= form.correlation < 1
    exact, cheap = sensitivity.closed_form(merger, x), sensitivity.closed_form(merger, x, rank="auto")
    assert rank_correlation(cheap, exact) >= 0.999


def test_small_projectors_are_taken_whole():
    projector = wide(1023)
    assert form_of(projector, "auto") is form_of(projector, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_layers_output_need_not_be_worked_out_again(dtype):
    projector, x = wide(1024).to(dtype), features(60).to(dtype)
    for rank in (None, 3, "auto"):
        shared = sensitivity.closed_form(projector, x, rank=rank, hidden=projector[0](x))
        tolerance = 1e-6 if dtype == torch.float32 else 2e-3
        torch.testing.assert_close(shared, sensitivity.closed_form(projector, x, rank=rank), rtol=tolerance, atol=0)
    with pytest.raises(ValueError, match="59 rows for 60 features"):
        sensitivity.closed_form(projector, x, hidden=projector[0](x)[1:])


def test_what_was_found_for_one_projector_is_not_used_for_another():
    one, other, x = wide(1024), wide(1100), features()
    scores = [sensitivity.closed_form(projector, x, rank="auto") for projector in (one, other, one, other)]
    assert torch.equal(scores[0], scores[2]) and torch.equal(scores[1], scores[3])
    assert not torch.allclose(scores[0], scores[1])


def test_within_a_block_the_weights_are_looked_at_once(monkeypatch):
    looks = []
    fingerprint = weight_cache.fingerprint
    monkeypatch.setattr(weight_cache, "fingerprint", lambda values: looks.append(1) or fingerprint(values))
    projector = mlp()
    with weight_cache.unchanged():
        for _ in range(3):
            sensitivity.closed_form(projector, features())
    assert len(looks) == 1
    sensitivity.closed_form(projector, features())
    assert len(looks) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8])
@pytest.mark.parametrize("count", [1, 3, 8, 21])
def test_any_single_change_of_a_weight_shows(dtype, count):
    values = torch.arange(count).to(dtype)
    module = nn.Module()
    module.register_buffer("values", values)
    assert weight_cache.cached(module, "key", lambda: 1) == weight_cache.cached(module, "key", lambda: 2) == 1
    for place in range(count):
        module.values.data[place] += 1
        assert weight_cache.cached(module, "key", lambda place=place: place) == place


@pytest.mark.parametrize("estimate", [sensitivity.finite_difference, sensitivity.jvp])
def test_full_rank_changes_nothing(estimate):
    projector, x = mlp(), features()
    torch.testing.assert_close(estimate(projector, x, rank=20), estimate(projector, x), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(estimate(projector, x, rank=2), estimate(projector, x), rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_scored_in_float32(dtype):
    projector, x = mlp(dtype=dtype), features().to(dtype)
    reference = mlp()
    reference.load_state_dict({name: value.float() for name, value in projector.state_dict().items()})
    for estimate in (sensitivity.finite_difference, sensitivity.jvp, sensitivity.closed_form):
        got = estimate(projector, x)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, estimate(reference, x.float()), rtol=1e-6, atol=0)
    assert projector[0].weight.dtype == dtype


def test_chunks_do_not_show(monkeypatch):
    projector, x = mlp(), features(50)
    whole = [estimate(projector, x) for estimate in (sensitivity.finite_difference, sensitivity.jvp)]
    monkeypatch.setattr(estimators, "_CHUNK", 7)
    for estimate, expected in zip((sensitivity.finite_difference, sensitivity.jvp), whole, strict=True):
        torch.testing.assert_close(estimate(projector, x), expected, rtol=1e-4, atol=0)


def test_changed_weights_are_noticed():
    projector, x = mlp(), features()
    before = [sensitivity.closed_form(projector, x), sensitivity.finite_difference(projector, x, rank=3)]
    with torch.no_grad():
        projector[2].weight.mul_(2)
    torch.testing.assert_close(sensitivity.closed_form(projector, x), 2 * before[0])
    projector.load_state_dict(mlp(nn.GELU()).state_dict())
    torch.testing.assert_close(sensitivity.closed_form(projector, x), before[0])
    torch.testing.assert_close(sensitivity.finite_difference(projector, x, rank=3), before[1])
    projector.to(torch.float64)
    torch.testing.assert_close(sensitivity.closed_form(projector, x), before[0])


def test_weights_written_behind_autograds_back_are_noticed():
    projector, x = mlp(), features()
    before = sensitivity.closed_form(projector, x)
    projector[2].weight.data.mul_(2)
    torch.testing.assert_close(sensitivity.closed_form(projector, x), 2 * before)
    # Each new weight may come to lie where an earlier one was.
    for scale in range(3, 12):
        projector[2].weight = nn.Parameter(mlp()[2].weight.detach() * scale)
        torch.testing.assert_close(sensitivity.closed_form(projector, x), scale * before)


def test_what_is_kept_goes_with_the_projector():
    projector = mlp()
    for estimate in (sensitivity.closed_form, sensitivity.finite_difference):
        estimate(projector, features(), rank=3)
    gone, held = weakref.ref(projector), len(weight_cache._kept)
    del projector
    gc.collect()
    assert gone() is None
    assert len(weight_cache._kept) < held


def test_it_works_in_inference_mode_and_after():
    with torch.inference_mode():
        projector, x = mlp(), features()
        inside = [
            estimate(projector, x, rank=5)
            for estimate in (sensitivity.finite_difference, sensitivity.jvp, sensitivity.closed_form)
        ]
        assert all(bool((scores > 0).all()) for scores in inside)
    for estimate, scores in zip(
        (sensitivity.finite_difference, sensitivity.jvp, sensitivity.closed_form), inside, strict=True
    ):
        torch.testing.assert_close(estimate(projector, x, rank=5), scores, rtol=1e-4, atol=0)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("name", ["finite_difference", "jvp", "closed_form"])
def test_the_callers_precision_settings_do_not_matter_and_stay(name, rank):
    estimate, projector, x = getattr(sensitivity, name), mlp(), features()
    expected = estimate(projector, x, rank=rank)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.float16)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            # Nothing is remembered from the run before: recognition, too, happens under these settings.
            weight_cache.forget(projector)
            got = estimate(projector, x, rank=rank)
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got, expected)


class Residual(nn.Module):
    """Has the children of a two-layer projector but computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.act(self.first(x)))


class Normed(Residual):
    """Norms its input without a module that would show among its children."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.act(self.first(nn.functional.rms_norm(x, x.shape[-1:]))))


class Clamped(Residual):
    """Differs for large inputs only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.act(self.first(x.clamp(-30, 30))))


class Nudged(Residual):
    """Differs by a thousandth."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.001 * self.second(self.act(self.first(x)))


@pytest.mark.parametrize(
    "projector",
    [
        Residual(),
        nn.Sequential(nn.Linear(12, 20), nn.Softmax(dim=-1), nn.Linear(20, 12)),
        nn.Sequential(nn.Linear(12, 20), nn.LayerNorm(20), nn.Linear(20, 12)),
        nn.Sequential(nn.Linear(12, 20), nn.LayerNorm(20, elementwise_affine=False), nn.Linear(20, 12)),
        nn.Sequential(nn.Linear(12, 20), nn.GLU(), nn.Linear(10, 12)),
        nn.Sequential(nn.Linear(12, 20), nn.PReLU(), nn.Linear(20, 12)),
        nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12)),
        Normed(),
        Clamped(),
        Nudged(),
        nn.Linear(12, 12),
        lambda x: x,
    ],
    ids=[
        "residual",
        "softmax",
        "norm",
        "plain norm",
        "gated",
        "parametric",
        "leading norm",
        "hidden norm",
        "clamped",
        "nudged",
        "linear",
        "function",
    ],
)
def test_closed_form_refuses_what_it_does_not_describe(projector):
    with pytest.raises(ValueError, match="jvp"):
        sensitivity.closed_form(projector, features())


def test_rank_needs_two_layers():
    with pytest.raises(ValueError, match="rank needs a projector"):
        sensitivity.jvp(Residual(), features(), rank=4)


def test_linear_projectors_are_recognised():
    x = features()
    assert sensitivity.is_linear(nn.Linear(12, 5), x)
    assert sensitivity.is_linear(nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 5, bias=False)), x)
    assert not sensitivity.is_linear(mlp(), x)
    assert not sensitivity.is_linear(mlp(nn.ReLU()), x)


def test_an_image_without_contrast_does_not_make_a_projector_linear():
    projector = mlp()
    with torch.no_grad():
        projector[0].bias.zero_()
    assert not sensitivity.is_linear(projector, torch.zeros(5, 12))
    assert not sensitivity.is_linear(projector, features())


def test_directions_are_independent_of_weights_made_from_the_same_seed():
    bias = []
    for seed in range(6):
        torch.manual_seed(seed)
        projector = nn.Sequential(nn.Linear(256, 400), nn.GELU(), nn.Linear(400, 400))
        x = torch.randn(20, 256, generator=torch.Generator().manual_seed(99))
        ratio = sensitivity.jvp(projector, x, seed=seed) / sensitivity.closed_form(projector, x)
        bias.append(float(ratio.mean()) - 1)
    assert abs(sum(bias) / len(bias)) < 0.006


def test_estimates_repeat_and_seeds_matter():
    projector, x = mlp(), features()
    first = sensitivity.jvp(projector, x, directions=4)
    torch.rand(3)
    assert torch.equal(first, sensitivity.jvp(projector, x, directions=4))
    assert not torch.equal(first, sensitivity.jvp(projector, x, directions=4, seed=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("estimate", [sensitivity.finite_difference, sensitivity.jvp, sensitivity.closed_form])
def test_features_that_are_not_finite_are_refused(estimate, value):
    x = features()
    x[3, 4] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        estimate(mlp(), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": 0}, "directions"),
        ({"directions": torch.ones(3, 5)}, "directions"),
        ({"directions": torch.zeros(3, 12)}, "zero"),
        ({"directions": torch.full((3, 12), float("nan"))}, "finite"),
        ({"step": 0.0}, "step"),
        ({"step": float("inf")}, "step"),
        ({"rank": 0}, "rank"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sensitivity.finite_difference(mlp(), features(), **options)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_stays_bounded_at_llavas_widths():
    """2,880 tokens at 1024 -> 4096 -> 4096 take less than 1 GiB; directions are worked through one by one."""
    script = Path(__file__).parents[1] / "benchmarks" / "sensitivity_memory.py"
    for estimator in ("finite_difference", "jvp", "closed_form"):
        command = [sys.executable, str(script), "--directions", "1", "--measure", estimator, "2880", "float32"]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert peak < 2**30
