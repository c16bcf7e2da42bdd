"""How strongly a small change to a visual token changes the projector's output: three estimators of one quantity.

The sensitivity of a token x is E_u ||J(x) u|| over unit directions u, with J the projector's Jacobian (ZOO-Prune,
arXiv 2509.24837, Eq. 2-4 and Proposition 3.1). Everything here runs in float32 whatever the model's dtype: in half
precision a step of 0.01 is close to the spacing of the features themselves.

What depends on the weights alone is kept per module and made anew when the weights change. `rank` makes an estimator
cheaper, in two ways: the sampled ones cut the projector's own matrices to that rank, as the paper does for LLaVA-NeXT;
the closed form keeps the projector whole and cuts G to its exact diagonal plus that many columns, or does better with
"auto".
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zooprune.precision import all_finite, exact_float32
from zooprune.projectors import Projector
from zooprune.sensitivity.jacobian import form_of, has_closed_form, squared_norm
from zooprune.sensitivity.running import Runner, directional, is_differentiable, probe_rows, runner_of
from zooprune.sensitivity.two_layer import as_two_layers, with_second
from zooprune.sensitivity.weight_cache import cached, unchanged

__all__ = ["closed_form", "finite_difference", "has_closed_form", "is_linear", "jvp", "low_rank"]

#: Tokens that pass through the projector at once; bounds the memory of the sampled estimators.
_CHUNK = 2048
#: Keeps the directions of a seed apart from weights initialised under that same seed: drawn from the same random bits,
#: they would lie along the rows of the first weight and overstate the sensitivity by one or two per cent.
_SALT = 0x5A4F4F


@exact_float32()
def finite_difference(
    projector: Projector,
    features: Tensor,
    *,
    directions: int | Tensor = 64,
    step: float = 1e-2,
    seed: int = 0,
    rank: int | None = None,
) -> Tensor:
    """Estimate the sensitivity by central differences, as the paper does (Eq. 2-4).

    Parameters
    ----------
    projector : callable, (..., d_vision) -> (..., d_text)
        Applied token by token. The weights of a module are used in float32; the module itself is left as it is.
    features : Tensor, (N, d_vision)
        What the projector reads, in any floating dtype.
    directions : int or Tensor, (m, d_vision)
        How many unit directions to draw, or the vectors themselves, brought to unit length. All tokens share them.
    step : float
        Length of the step, in the features' own units (h in the paper). A quantised module that can only run as it
        stands bears no small steps: there the step is at least the spacing of its numbers to the power of 1/3, times
        the root mean square of the features' norms.
    seed : int
        Seed of the drawn directions.
    rank : int, optional
        Score `low_rank` of the projector instead (the paper uses 128 for LLaVA-NeXT).

    Returns
    -------
    Tensor of float32, (N,)

    Raises
    ------
    ValueError
        If an argument is out of range, the features are not finite, or `rank` is asked of a projector that is not
        two linear layers with an activation between.
    """
    if not 0 < step < float("inf"):
        raise ValueError(f"step={step} must be positive and finite; the paper uses 0.01")
    features = _checked(features)
    units = _unit_directions(directions, features, seed)
    with unchanged(), torch.no_grad():
        apply = _runner(projector, features, rank)
        step = step if apply.exact else max(step, apply.step_for(features))
        total = features.new_zeros(len(features))
        for rows, moved in zip(features.split(_CHUNK), total.split(_CHUNK), strict=True):
            for unit in units:
                ahead, behind = apply(torch.stack([rows + step * unit, rows - step * unit]))
                moved += (ahead - behind).norm(dim=-1)
    return total / (2 * step * len(units))


@exact_float32()
def jvp(
    projector: Projector, features: Tensor, *, directions: int | Tensor = 64, seed: int = 0, rank: int | None = None
) -> Tensor:
    """Estimate the sensitivity from exact directional derivatives: `finite_difference` with a vanishing step.

    Parameters
    ----------
    projector : callable, (..., d_vision) -> (..., d_text)
        Anything forward-mode differentiation can follow.
    features : Tensor, (N, d_vision)
    directions : int or Tensor, (m, d_vision)
        As for `finite_difference`.
    seed : int
        Seed of the drawn directions.
    rank : int, optional
        As for `finite_difference`.

    Returns
    -------
    Tensor of float32, (N,)

    Raises
    ------
    ValueError
        As for `finite_difference`, and if the projector is a step function, as one is that quantises activations, or
        runs code that forward-mode differentiation cannot follow.
    """
    features = _checked(features)
    units = _unit_directions(directions, features, seed)
    # Forward-mode differentiation cannot start from tensors made in inference mode.
    with unchanged(), torch.inference_mode(False), torch.no_grad():
        if not is_differentiable(projector, features.shape[-1]):
            raise ValueError('this projector cannot be differentiated; use estimator="finite_difference"')
        apply = _runner(projector, features, rank)
        total = torch.zeros(len(features), dtype=torch.float32, device=features.device)
        for rows, moved in zip(features.clone().split(_CHUNK), total.split(_CHUNK), strict=True):
            for unit in units.clone():
                moved += directional(apply, rows, unit).norm(dim=-1)
    return total / len(units)


@exact_float32()
def closed_form(
    projector: Projector,
    features: Tensor,
    *,
    rank: int | Literal["auto"] | None = None,
    hidden: Tensor | None = None,
) -> Tensor:
    """Compute the root mean square of ||J u|| over all unit directions, without drawing any.

    For W2 act(W1 x + b1) + b2 the Jacobian is W2 D W1 with D = diag(act'(W1 x + b1)), hence
    E ||J u||^2 = ||J||_F^2 / d_vision = d^T G d / d_vision with d the diagonal of D and
    G = (W1 W1^T) * (W2^T W2), elementwise. G depends on the weights alone and is kept until they change. A norm in
    front of W1 changes ||J||_F^2 by a scale and a rank-one term for each block that it norms.

    Parameters
    ----------
    projector : torch.nn.Module
        Linear, elementwise activation without parameters, Linear; or a `zooprune.projectors.NormedMLP`. A layer may be
        any affine map: one with adapters on it, with quantised weights, or with weights that are fetched when it runs.
    features : Tensor, (N, d_vision)
    rank : int, "auto" or None
        None takes G whole and is exact. A number keeps its exact diagonal plus that many columns, which costs a small
        part of it. "auto" costs as little and comes nearer: it works from the slopes that tokens of one image have in
        common (`zooprune.sensitivity.jacobian.AboutMeans`), or from the whole if that ranks random tokens otherwise;
        `zooprune.sensitivity.jacobian.form_of` says how well they are. Features must then be those of one image.
    hidden : Tensor, (N, d_hidden), optional
        What the first layer gave for these features, in any floating dtype, which saves working it out again. Not used
        where each of several blocks is normed by itself.

    Returns
    -------
    Tensor of float32, (N,)

    Raises
    ------
    ValueError
        If the projector has another form, where `jvp` serves, the features are not finite, `rank` is not positive, or
        `hidden` does not fit.
    """
    features = _checked(features)
    if rank is not None and rank != "auto":
        _positive("rank", rank)
    if hidden is not None and len(hidden) != len(features):
        raise ValueError(f"hidden has {len(hidden)} rows for {len(features)} features; give one for each token")
    with unchanged(), torch.no_grad():
        if not has_closed_form(projector):
            raise ValueError('closed_form needs Linear -> activation -> Linear; use estimator="jvp" for this projector')
        assert isinstance(projector, nn.Module)
        squared = squared_norm(projector, features, form_of(projector, rank), hidden)
    return (squared / features.shape[-1]).sqrt()


@exact_float32()
def is_linear(projector: Projector, features: Tensor) -> bool:
    """Return whether the projector is affine, in which case every token is equally sensitive.

    Tested by superposition on random rows of two sizes, since a smooth activation looks straight to small inputs.

    Parameters
    ----------
    projector : callable, (..., d_vision) -> (..., d_text)
    features : Tensor, (N, d_vision)
        Only their width and device matter.

    Returns
    -------
    bool
    """
    width = features.shape[-1]

    def superposes() -> bool:
        apply = runner_of(projector, width)
        with torch.no_grad():
            one, other = (probe_rows(width, features.device, seed) for seed in (0, 1))
            apart = apply.at(one) + apply.at(other)
            together = apply.at(one + other) + apply.at(torch.zeros_like(one))
        return bool(((apart - together).norm(dim=-1) <= apply.tolerance * apart.norm(dim=-1)).all())

    return cached(projector, ("linear", width), superposes) if isinstance(projector, nn.Module) else superposes()


def low_rank(projector: Projector, rank: int) -> Projector:
    """Return the projector with both linear layers cut to `rank` by singular value decomposition.

    The decomposition is that of the weights as they are now, in float32, and is redone when they change.

    Raises
    ------
    ValueError
        If `rank` is not positive or the projector is not Linear -> activation -> Linear.
    """
    _positive("rank", rank)
    mlp = as_two_layers(projector)
    if mlp is None or mlp.norm is not None:
        raise ValueError("rank needs a projector of the form Linear -> activation -> Linear; leave it None here")
    assert isinstance(projector, nn.Module)

    def factors() -> list[tuple[Tensor, Tensor, Tensor | None]]:
        whole, pairs = with_second(projector), []
        for layer in (whole.first, whole.second):
            assert layer is not None
            left, values, right = torch.linalg.svd(layer.weight.detach().float(), full_matrices=False)
            bias = None if layer.bias is None else layer.bias.detach().float().clone()
            pairs.append((left[:, :rank] * values[:rank], right[:rank].contiguous(), bias))
        return pairs

    (left_1, right_1, bias_1), (left_2, right_2, bias_2) = cached(projector, ("svd", rank), factors)
    activation = mlp.activation
    return lambda x: F.linear(
        F.linear(activation(F.linear(F.linear(x, right_1), left_1, bias_1)), right_2), left_2, bias_2
    )


def _runner(projector: Projector, features: Tensor, rank: int | None) -> Runner:
    return runner_of(projector, features.shape[-1]) if rank is None else Runner(low_rank(projector, rank))


def _unit_directions(directions: int | Tensor, features: Tensor, seed: int) -> Tensor:
    """Return unit vectors (m, d_vision), drawn on the CPU so that they are the same on every device."""
    width = features.shape[-1]
    if isinstance(directions, Tensor):
        if directions.ndim != 2 or directions.shape[1] != width or len(directions) == 0:
            raise ValueError(f"directions must be (m, {width}), got {tuple(directions.shape)}")
        drawn = directions.detach().to(features.device, torch.float32)
    else:
        _positive("directions", directions)
        generator = torch.Generator().manual_seed(seed ^ _SALT)
        drawn = torch.randn(directions, width, generator=generator, dtype=torch.float32, device="cpu")
    lengths = drawn.norm(dim=-1, keepdim=True)
    if not bool(((lengths > 0) & lengths.isfinite()).all()):
        raise ValueError("directions must be finite and none of them zero")
    return (drawn / lengths).to(features.device)


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(f"features must be floating point (N, d_vision), got {features.dtype} {tuple(features.shape)}")
    features = features.detach().float()
    if not bool(all_finite(features)):
        raise ValueError(
            "features contain NaN or infinity; check the image, or run the vision tower in bfloat16 or float32"
        )
    return features


def _positive(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a positive int")
