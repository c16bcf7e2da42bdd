"""Run a projector for scoring: in float32 on a copy, or as it stands where no copy computes the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zooprune.offloading import device_of
from zooprune.projectors import Projector
from zooprune.sensitivity.copies import copied, to_float32
from zooprune.sensitivity.weight_cache import cached

#: Spacing of float32 next to one.
_FLOAT32 = 2.0**-23
#: Spacing next to one that is assumed of anything coarser: that of bfloat16, which eight-bit codes have, too.
_COARSE = 2.0**-7
#: How far two ways of working out the same may differ, relative to the norm, where both are float32 and else.
_NEAR, _ROUGHLY = 1e-4, 0.05

#: Levels of forward-mode differentiation belong to the process, not to a thread.
forward_mode = threading.Lock()


@dataclass(frozen=True)
class Runner:
    """A projector as a function from float32 to float32.

    Parameters
    ----------
    call : callable, (..., d_vision) -> (..., d_text)
    spacing : float
        Relative spacing of the numbers it computes with.
    """

    call: Callable[[Tensor], Tensor]
    spacing: float = _FLOAT32

    @property
    def exact(self) -> bool:
        """Whether it computes in float32 throughout."""
        return self.spacing == _FLOAT32

    @property
    def tolerance(self) -> float:
        """How far its results may be from those of a formula for the same, relative to their norm."""
        return _NEAR if self.exact else _ROUGHLY

    def step_for(self, rows: Tensor) -> float:
        """Return a step that central differences through numbers of this spacing bear: in the units of the rows."""
        return float(self.spacing ** (1 / 3) * rows.norm(dim=-1).square().mean().sqrt())

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the projector."""
        return self.call(x)

    def at(self, rows: Tensor) -> Tensor:
        """Apply the projector to probe rows one by one; a quantiser's range would else be that of the largest."""
        return torch.cat([self.call(row[None]) for row in rows])


def runner_of(projector: Projector, width: int) -> Runner:
    """Return what runs a projector without changing it or anything that other threads may be using.

    A module is copied in float32, without copying what is float32 already; adapters stay in it, weights that
    accelerate moved away are fetched, weights that were quantised are expanded. If the copy turns out to compute
    something else on a few rows, as where activations are quantised, too, the module itself runs in its own dtype.

    Parameters
    ----------
    projector : callable, (..., width) -> (..., d_text)
    width : int
    """
    if not isinstance(projector, nn.Module):
        return Runner(lambda x: projector(x).float())
    found = _float32_copy(projector)
    if found is not None and cached(projector, ("copy agrees", width), lambda: _agrees(found, projector, width)):
        return found
    return _itself(projector)


def layer_runner(layer: nn.Module) -> Runner:
    """Return what runs a part of a projector; whether it is right shows when the whole is tried."""
    return _float32_copy(layer) or _itself(layer)


def is_differentiable(projector: Projector, width: int) -> bool:
    """Return whether forward-mode differentiation follows a projector; a step function's derivative is nowhere right.

    Tried once per weights against finite differences on a few rows.
    """
    if not isinstance(projector, nn.Module):
        return True

    def follows() -> bool:
        runner = runner_of(projector, width)
        rows = probe_rows(width, device_of(projector))[:2]
        unit = F.normalize(probe_rows(width, rows.device, seed=1)[:1], dim=-1)
        try:
            slope = directional(runner, rows, unit).norm(dim=-1)
        except (RuntimeError, NotImplementedError, TypeError):
            return False
        step = runner.step_for(rows)
        change = (runner.at(rows + step * unit) - runner.at(rows - step * unit)).norm(dim=-1) / (2 * step)
        return bool(((slope > 0.5 * change) & (slope < 2 * change)).all())

    return cached(projector, ("differentiable", width), follows)


def _float32_copy(module: nn.Module) -> Runner | None:
    """Return what runs a copy of which every number is float32, or None where that cannot be made."""
    copy = copied(module, to_float32)
    return None if copy is None or not _is_float32(copy) else Runner(copy)


def _is_float32(module: nn.Module) -> bool:
    """Return whether all that a module computes with is plain float32."""
    for layer in module.modules():
        if any(isinstance(value, torch.ScriptObject) for value in list(vars(layer).values())):
            return False
        weights = [value for value in layer._parameters.values() if value is not None]
        floating = [value for value in layer._buffers.values() if value is not None and value.is_floating_point()]
        for value in [*weights, *floating]:
            # Quantised weights are tensors of other tensors, and say that they are of float32 all the same.
            if hasattr(value, "__tensor_flatten__") or value.dtype != torch.float32 or value.is_meta:
                return False
    return True


def _itself(module: nn.Module) -> Runner:
    """Return what runs the module as it stands, in its own dtype."""
    floating = (value.dtype for value in [*module.parameters(), *module.buffers()] if value.is_floating_point())
    dtype = next(floating, torch.float32)
    # Dropout would make every call another; a copy that keeps the dtype has none.
    training = any(layer.training for layer in module.modules())
    runs = (copied(module, lambda value: value) if training else None) or module
    # Past what `Module.compile` made, which would compile anew for a few probe rows.
    return Runner(lambda x: runs._call_impl(x.to(dtype)).float(), _FLOAT32 if _is_float32(module) else _COARSE)


def _agrees(copy: Runner, projector: nn.Module, width: int) -> bool:
    original = _itself(projector)
    # The large ones may be too large for half precision.
    rows = probe_rows(width, device_of(projector))[: 4 if original.exact else 2]
    return alike(original.at(rows), copy.at(rows), original.tolerance)


def directional(function: Callable[[Tensor], Tensor], rows: Tensor, unit: Tensor) -> Tensor:
    """Return the derivative of a function along a direction, the shape of its output."""
    with forward_mode:
        change: Tensor = torch.func.jvp(function, (rows,), (unit.expand_as(rows),))[1]
    return change


def probe_rows(width: int, device: torch.device, seed: int = 0) -> Tensor:
    """Return random rows, two of ordinary and two of large size: (4, width)."""
    rows = torch.randn(4, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")
    return (rows * torch.tensor([[1.0], [1.0], [100.0], [100.0]], dtype=torch.float32, device="cpu")).to(device)


def alike(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Return whether rows differ by no more than a part of their norm."""
    if one.shape != other.shape:
        return False
    return bool(((one - other).norm(dim=-1) <= tolerance * other.norm(dim=-1) + 1e-12).all())
