"""Recognise a projector that is two linear layers with an activation between, and read its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zooprune.precision import exact_float32
from zooprune.projectors import Projector
from zooprune.sensitivity.weight_cache import cached


@dataclass(frozen=True)
class TwoLayer:
    """W2 act(W1 x + b1) + b2. The layers are the module's own; their float32 values are made on reading."""

    first: nn.Linear
    activation: Callable[[Tensor], Tensor]
    second: nn.Linear

    @property
    def weight_1(self) -> Tensor:
        """W1: (d_hidden, d_vision)."""
        return self.first.weight.detach().float()

    @property
    def bias_1(self) -> Tensor | float:
        """b1: (d_hidden,), or 0 where the layer has none."""
        return 0.0 if self.first.bias is None else self.first.bias.detach().float()

    @property
    def weight_2(self) -> Tensor:
        """W2: (d_text, d_hidden)."""
        return self.second.weight.detach().float()

    @property
    def bias_2(self) -> Tensor | float:
        """b2: (d_text,), or 0 where the layer has none."""
        return 0.0 if self.second.bias is None else self.second.bias.detach().float()

    def hidden(self, x: Tensor) -> Tensor:
        """Return what the activation reads: (..., d_hidden)."""
        return x @ self.weight_1.T + self.bias_1

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the projector: (..., d_vision) -> (..., d_text)."""
        return self.activation(self.hidden(x)) @ self.weight_2.T + self.bias_2


@exact_float32()
def as_mlp(projector: Projector) -> TwoLayer | None:
    """Return the projector's two layers if that is all it is, else None.

    A module qualifies by its three children and by what it computes: on a few random rows, small and large, it must
    agree with the plain formula, so that the same children with a residual path, a norm or a clamp are told apart.
    """
    if not isinstance(projector, nn.Module):
        return None
    children = list(projector.children())
    if len(children) != 3:
        return None
    first, activation, second = children
    layers = (first, second)
    if not all(isinstance(layer, nn.Linear) and is_plain(layer.weight) for layer in layers):
        return None
    if [*activation.parameters(), *activation.buffers()]:
        return None
    mlp = TwoLayer(first, activation, second)  # type: ignore[arg-type]

    def holds() -> bool:
        with torch.no_grad():
            probe = probe_rows(mlp.first.in_features, mlp.first.weight.device)
            hidden = mlp.hidden(probe)
            if not _is_elementwise(activation, hidden):
                return False
            actual, plain = in_float32(projector)(probe), mlp(probe)
        if actual.shape != plain.shape:
            return False
        return bool(((actual - plain).norm(dim=-1) <= 1e-4 * plain.norm(dim=-1) + 1e-12).all())

    return mlp if cached(projector, "two layers", holds) else None


def in_float32(projector: Projector) -> Projector:
    """Return the projector as a function that computes in float32, its parameters left as they are."""
    if not isinstance(projector, nn.Module):
        return lambda x: projector(x).float()
    tensors = {**dict(projector.named_parameters()), **dict(projector.named_buffers())}
    upcast = {name: value.detach().float() for name, value in tensors.items() if value.is_floating_point()}
    return lambda x: torch.func.functional_call(projector, upcast, (x,))


def probe_rows(width: int, device: torch.device, seed: int = 0) -> Tensor:
    """Return random rows, two of ordinary and two of large size: (4, width)."""
    rows = torch.randn(4, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")
    return (rows * torch.tensor([[1.0], [1.0], [100.0], [100.0]], dtype=torch.float32, device="cpu")).to(device)


def is_plain(weight: Tensor) -> bool:
    """Return whether a layer's weight is the matrix itself and not, say, a packed four-bit form of it."""
    return weight.ndim == 2 and weight.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
