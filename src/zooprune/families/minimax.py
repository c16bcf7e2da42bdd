"""MiniMax M3: two layers for every patch, and two more for the four patches of a token."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zooprune.families.gridded import Gridded


class MiniMaxM3(Gridded):
    """``MiniMaxM3SparseForConditionalGeneration``."""

    architectures = ("MiniMaxM3SparseForConditionalGeneration",)
    title = "MiniMax M3"
    sensitivity = "sampled"
    tower = "vision_tower"

    def merger(self, model: Any) -> nn.Module:
        """Return the projector."""
        module: nn.Module = model.model.multi_modal_projector
        return module

    def tail(self, projector: Any) -> nn.Module:
        """Return the projector as a map of one token's patches, side by side."""
        return ByToken(projector, projector.spatial_merge_size**2)


class ByToken(nn.Module):
    """A projector that reads patches row by row, as a map of tokens.

    Parameters
    ----------
    projector : torch.nn.Module
        Maps (tokens * blocks, d) to (tokens, d_text).
    blocks : int
        Patches of a token.
    """

    def __init__(self, projector: nn.Module, blocks: int) -> None:
        super().__init__()
        self.projector, self.blocks = projector, blocks

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., blocks * d) to (..., d_text)."""
        rows: Tensor = self.projector(x.unflatten(-1, (self.blocks, -1)).flatten(0, -2))
        return rows.view(*x.shape[:-1], -1)
