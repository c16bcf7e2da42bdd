"""Forms of projectors whose sensitivity has a closed form, built around a model's own layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

Projector = Callable[[Tensor], Tensor]
#: How a projector's sensitivity is found; a linear one tells no tokens apart.
Sensitivity = Literal["closed form", "sampled", "linear"]


class NormedMLP(nn.Module):
    """Norm each block, put the blocks side by side, Linear, activation, Linear.

    The form of Qwen's patch merger (four blocks, one per merged patch) and of InternVL's projector (one block).

    Parameters
    ----------
    norm : torch.nn.Module
        LayerNorm, or an RMSNorm whose output is `weight` times the normalised input.
    first : torch.nn.Module
        A linear layer, or any other affine map.
    activation : callable
        Elementwise, without parameters.
    second : torch.nn.Linear
    blocks : int
        How many equal parts of a token are normed each by itself.
    """

    def __init__(
        self,
        norm: Any,
        first: nn.Module,
        activation: Callable[[Tensor], Tensor],
        second: nn.Linear,
        blocks: int = 1,
    ) -> None:
        super().__init__()
        self.norm: Any = norm
        self.first, self.activation, self.second = first, activation, second
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., blocks * d) to (..., d_text)."""
        normed = self.norm(x.unflatten(-1, (self.blocks, -1))).flatten(-2)
        return self.second(self.activation(self.first(normed)))


class NormedLinear(nn.Module):
    """A norm and a matrix: Gemma 3's projector after its pooling.

    Parameters
    ----------
    norm : torch.nn.Module
    matrix : Tensor, (d_vision, d_text)
        The model's own parameter, or its values where the parameter itself is kept elsewhere.
    """

    matrix: Tensor

    def __init__(self, norm: nn.Module, matrix: Tensor) -> None:
        super().__init__()
        self.norm = norm
        if isinstance(matrix, nn.Parameter):
            self.matrix = matrix
        else:
            self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_vision) to (..., d_text)."""
        return self.norm(x) @ self.matrix


class GatedMLP(nn.Module):
    """Norm, if there is one, Linear, one half gated by the other, Linear: the projectors of Aya Vision and Command A.

    Parameters
    ----------
    norm : torch.nn.Module
    first, second : torch.nn.Linear
    activation : callable
    """

    def __init__(
        self, norm: nn.Module, first: nn.Linear, activation: Callable[[Tensor], Tensor], second: nn.Linear
    ) -> None:
        super().__init__()
        self.norm, self.first, self.activation, self.second = norm, first, activation, second

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_vision) to (..., d_text)."""
        value, gate = self.first(self.norm(x)).chunk(2, dim=-1)
        return self.second(self.activation(gate) * value)
