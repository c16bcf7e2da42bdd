"""Recognise a projector that is two affine layers with an activation between, normed or not, and read its parts.

A layer need not be a plain ``nn.Linear``: where adapters were put on it, or its weights are quantised or elsewhere, the
weights that it works with in effect are read from what it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zooprune.offloading import device_of, is_offloaded, own_tensors
from zooprune.precision import exact_float32
from zooprune.projectors import NormedMLP, Projector
from zooprune.sensitivity.copies import copied, is_plain, to_float32
from zooprune.sensitivity.running import Runner, alike, layer_runner, probe_rows, runner_of
from zooprune.sensitivity.weight_cache import cached

#: Columns of a weight that are read at once.
_AT_ONCE = 512


@dataclass(frozen=True)
class Effective:
    """W x + b, read from a layer that is no plain ``nn.Linear``.

    Parameters
    ----------
    weight : Tensor, (d_out, d_in)
        In float32, or in bfloat16 where that loses nothing.
    bias : Tensor or None, (d_out,)
    origin : str
        What it was read from, in words.
    """

    weight: Tensor
    bias: Tensor | None
    origin: str


Affine = nn.Linear | Effective


@dataclass(frozen=True)
class Norm:
    """gain * (x - mean) / scale + shift, or without the mean.

    Parameters
    ----------
    gain : Tensor of float32, (d,)
    shift : Tensor of float32 or None, (d,)
    eps : float
    centred : bool
        Whether the mean is taken away.
    """

    gain: Tensor
    shift: Tensor | None
    eps: float
    centred: bool

    def normalised(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised values, the shape of `blocks`, and what they were divided by, (..., blocks)."""
        if self.centred:
            blocks = blocks - blocks.mean(-1, keepdim=True)
        scale = (blocks.square().mean(-1) + self.eps).sqrt()
        return blocks / scale[..., None], scale

    def __call__(self, blocks: Tensor) -> Tensor:
        """Apply the norm to each block, float32."""
        normed = self.normalised(blocks)[0] * self.gain
        return normed if self.shift is None else normed + self.shift


@dataclass
class TwoLayer:
    """W2 act(W1 n(x) + b1) + b2, with n a norm of each block or nothing.

    Parameters
    ----------
    first : nn.Linear or Effective
        A plain layer is the module's own and is read anew at every use.
    activation : callable
    second : nn.Linear, Effective or None
        None once what is made of it has been made, where it would take memory of its own.
    norm : Norm, optional
    blocks : int
    """

    first: Affine
    activation: Callable[[Tensor], Tensor]
    second: Affine | None
    norm: Norm | None = None
    blocks: int = 1
    #: What other than plain layers the weights were read from, in words.
    origins: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        layers = (self.first, self.second)
        self.origins = tuple(dict.fromkeys(layer.origin for layer in layers if isinstance(layer, Effective)))

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the projector: (..., d_vision) -> (..., d_text), float32."""
        assert self.second is not None
        return affine(self.activation(self.hidden(x)), self.second)

    def hidden(self, x: Tensor) -> Tensor:
        """Return what the activation reads: (..., d_hidden), float32."""
        if self.norm is not None:
            x = self.norm(x.unflatten(-1, (self.blocks, -1))).flatten(-2)
        return affine(x, self.first)


def affine(x: Tensor, layer: Affine) -> Tensor:
    """Apply a layer in float32."""
    return F.linear(x, layer.weight.detach().float(), None if layer.bias is None else layer.bias.detach().float())


@exact_float32()
def as_two_layers(projector: Projector) -> TwoLayer | None:
    """Return the projector's parts if they are all it is, else None.

    A module qualifies by its children and by what it computes: on a few random rows, small and large, it must agree
    with the plain formula, so that the same children with a residual path, another norm or a clamp are told apart.
    """
    if not isinstance(projector, nn.Module):
        return None
    return cached(projector, "two layers", lambda: _read(projector))


def with_second(projector: nn.Module) -> TwoLayer:
    """Return the parts of a projector that is known to be two layers, the second among them."""
    parts = as_two_layers(projector)
    if parts is None or parts.second is None:
        parts = _read(projector)
    assert parts is not None, "only projectors that have a closed form come here"
    return parts


def _read(projector: nn.Module) -> TwoLayer | None:
    with torch.no_grad():
        for parts in _candidates(projector):
            width = parts.first.weight.shape[1]
            probe = probe_rows(width, device_of(projector))
            runner = runner_of(projector, width)
            if not runner.exact:
                probe = probe[:2]
            # Before the projector runs, so that a mistaken candidate is not asked for rows of another width.
            if _is_elementwise(parts.activation, parts.hidden(probe)) and alike(
                runner.at(probe), parts(probe), runner.tolerance
            ):
                return parts
    return None


def _candidates(projector: nn.Module) -> Iterator[TwoLayer]:
    if isinstance(projector, NormedMLP):
        for norm in _norms(projector.norm):
            width = projector.blocks * len(norm.gain)
            first = _affine(projector.first, width)
            second = None if first is None else _affine(projector.second, first.weight.shape[0])
            if first is not None and second is not None:
                yield TwoLayer(first, projector.activation, second, norm, projector.blocks)
        return
    # A wrapper, such as that of a module that was trained beside adapters, has what it runs inside.
    inside = [projector] if len([*projector.children()]) == 3 else [*projector.modules()]
    for module in inside:
        children = [*module.children()]
        if len(children) != 3 or [*children[1].parameters(), *children[1].buffers()]:
            continue
        read = getattr(children[0], "in_features", None)
        first = _affine(children[0], read) if isinstance(read, int) else None
        second = None if first is None else _affine(children[2], first.weight.shape[0])
        if first is not None and second is not None:
            yield TwoLayer(first, children[1], second)


def _norms(norm: nn.Module) -> Iterator[Norm]:
    """Yield the norms that a module may be, or have inside where something was put around it."""
    for module in norm.modules():
        values = {name: value for name, value in own_tensors(module) if value.ndim == 1}
        eps = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
        if "weight" in values and isinstance(eps, float):
            device = device_of(norm)
            found = {name: to_float32(value).to(device) for name, value in values.items()}
            yield Norm(found["weight"], found.get("bias"), eps, isinstance(module, nn.LayerNorm))


def _affine(layer: nn.Module, width: int) -> Affine | None:
    """Return a layer's weights if it is affine and reads rows of this width."""
    if _is_plain_linear(layer):
        assert isinstance(layer, nn.Linear)
        return layer if layer.weight.shape[1] == width else None
    plain = copied(layer, to_float32)
    if plain is not None and _is_plain_linear(plain):
        # Expanded or fetched by copying.
        assert isinstance(plain, nn.Linear)
        return Effective(_narrow(plain.weight.detach()), plain.bias, _origin(layer))
    runner = layer_runner(layer)
    try:
        found = _basis(runner, width, device_of(layer))
        rows = probe_rows(width, found.weight.device)[: 4 if runner.exact else 2]
        return Effective(_narrow(found.weight), found.bias, _origin(layer)) if _holds(runner, found, rows) else None
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        # It takes no such rows, or nothing can be worked out with where its weights are.
        return None


def _holds(runner: Runner, found: Effective, rows: Tensor) -> bool:
    return alike(runner.at(rows), affine(rows, found), runner.tolerance)


def _basis(runner: Runner, width: int, device: torch.device) -> Effective:
    """Read an affine layer's weights from what it makes of nothing and of unit vectors."""
    origin = runner(torch.zeros(1, width, device=device))[0]
    # So long that the bias does not cost a coarser dtype the weights' digits.
    length = 1.0 if runner.exact else 256.0
    columns = []
    for start in range(0, width, _AT_ONCE):
        count = min(_AT_ONCE, width - start)
        units = torch.zeros(count, width, device=device)
        units[torch.arange(count), start + torch.arange(count)] = length
        columns.append((runner(units) - origin).T / length)
    return Effective(torch.cat(columns, dim=1), origin if bool(origin.any()) else None, "")


def _narrow(weight: Tensor) -> Tensor:
    """Return a weight in bfloat16 if that loses nothing."""
    narrow = weight.bfloat16()
    return narrow if torch.equal(narrow.float(), weight) else weight.contiguous()


def _is_plain_linear(layer: nn.Module) -> bool:
    """Return whether a layer is a matrix and a bias that are there to be read, and runs as such."""
    return (
        isinstance(layer, nn.Linear)
        and type(layer).forward is nn.Linear.forward
        and is_plain(layer.weight)
        and not layer._forward_pre_hooks
        and not is_offloaded(layer)
    )


def _origin(layer: nn.Module) -> str:
    if is_offloaded(layer):
        return "offloaded weights"
    package, weight = type(layer).__module__.partition(".")[0], getattr(layer, "weight", None)
    kind = type(weight if package == "torch" and isinstance(weight, Tensor) else layer).__name__
    return (
        f"effective weights of {kind}" if package in ("torch", "zooprune") else f"effective weights of {package} {kind}"
    )


def _is_elementwise(activation: Callable[[Tensor], Tensor], hidden: Tensor) -> bool:
    """Return whether each output depends on the input in its own place alone, tried by mixing two inputs."""
    other = hidden.flip(0)
    mine = torch.arange(hidden.shape[-1], device=hidden.device) % 3 == 0
    try:
        mixed, apart = activation(torch.where(mine, hidden, other)), (activation(hidden), activation(other))
    except (RuntimeError, ValueError):
        # Gated activations halve the width and may not accept this one.
        return False
    return mixed.shape == hidden.shape and torch.allclose(mixed, torch.where(mine, *apart), rtol=1e-4, atol=1e-6)
