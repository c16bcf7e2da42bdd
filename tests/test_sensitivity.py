from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from zooprune import sensitivity

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
    gram = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    gram = gram @ gram.T
    residual, columns = sensitivity._diagonal_plus_low_rank(gram, 5)
    torch.testing.assert_close(residual + columns.square().sum(-1), gram.diagonal())


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
    monkeypatch.setattr(sensitivity, "_CHUNK", 7)
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


def test_it_works_in_inference_mode():
    with torch.inference_mode():
        projector, x = mlp(), features()
        for estimate in (sensitivity.finite_difference, sensitivity.jvp, sensitivity.closed_form):
            assert bool((estimate(projector, x) > 0).all())


class Residual(nn.Module):
    """Has the children of a two-layer projector but computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.act(self.first(x)))


@pytest.mark.parametrize(
    "projector",
    [
        Residual(),
        nn.Sequential(nn.Linear(12, 20), nn.Softmax(dim=-1), nn.Linear(20, 12)),
        nn.Sequential(nn.Linear(12, 20), nn.LayerNorm(20), nn.Linear(20, 12)),
        nn.Linear(12, 12),
        lambda x: x,
    ],
    ids=["residual", "softmax", "norm", "linear", "function"],
)
def test_closed_form_refuses_what_it_does_not_describe(projector):
    with pytest.raises(ValueError, match="jvp"):
        sensitivity.closed_form(projector, features())


def test_linear_projectors_are_recognised():
    x = features()
    assert sensitivity.is_linear(nn.Linear(12, 5), x)
    assert sensitivity.is_linear(nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 5, bias=False)), x)
    assert not sensitivity.is_linear(mlp(), x)
    assert not sensitivity.is_linear(mlp(nn.ReLU()), x)


def test_estimates_repeat_and_seeds_matter():
    projector, x = mlp(), features()
    first = sensitivity.jvp(projector, x, directions=4)
    torch.rand(3)
    assert torch.equal(first, sensitivity.jvp(projector, x, directions=4))
    assert not torch.equal(first, sensitivity.jvp(projector, x, directions=4, seed=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "estimate", [sensitivity.finite_difference, sensitivity.jvp, sensitivity.closed_form, sensitivity.is_linear]
)
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
        ({"step": 0.0}, "step"),
        ({"rank": 0}, "rank"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sensitivity.finite_difference(mlp(), features(), **options)
