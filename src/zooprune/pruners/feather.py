"""FEATHER: attention without positions chooses, and a coarse grid keeps every part of the image at first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from zooprune.pruners.inside import InsidePruner, check_layers, check_share

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer


@dataclass(frozen=True)
class Feather(InsidePruner):
    """Keep tokens that the last token attends to when positions are ignored, and at first also a uniform grid.

    With rotary positions, the last token attends most to the end of the image, which is its lower edge. Therefore
    queries and keys of the layer before are compared without them, by a softmax over the visual tokens alone. The first
    stage keeps the tokens on a grid and the highest scoring ones; the second keeps the highest scoring ones. Tokens
    that stay keep their positions.

    Source: Endo et al., "Feather the Throttle: Revisiting Visual Token Pruning for Vision-Language Model Acceleration",
    arXiv 2412.13180, and its code. With a budget, the tokens on the grid are part of it.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves `ratio`.
    layers : tuple of int or float
        In front of which layers, counted from 0, or at which shares of the depth: layers 8 and 16 of 32 in the paper.
    ratio : float
        Where `keep` is None, the first stage keeps this share beside the grid, and every later stage the square of this
        share of the tokens that reach it.
    stride : int
        Distance between neighbouring rows and columns of the grid, in tokens.

    Notes
    -----
        score_i = mean_h softmax_i(c · q_h · k_hi)

        q_h, k_hi: query of the prompt's last token and key of visual token i in head h
                   of the layer before, without rotary positions; c: the layer's scaling
    """

    name: ClassVar[str] = "feather"
    source: ClassVar[str] = "arXiv 2412.13180"

    layers: tuple[int | float, ...] = (0.25, 0.5)
    ratio: float = 0.3
    stride: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self.layers)
        check_share("ratio", self.ratio)
        if isinstance(self.stride, bool) or not isinstance(self.stride, int) or self.stride < 1:
            raise ValueError(f"stride={self.stride!r} must be an int of at least 1")

    def places(self) -> tuple[int | float, ...]:
        """Return the layers."""
        return self.layers

    def shares(self, share: float | None, stages: int) -> tuple[float, ...]:
        """Return what is left when later stages keep the square of the first one's share of what they find."""
        ratio = self.ratio if share is None else share
        return tuple(ratio ** (2 * stage + 1) for stage in range(stages))

    def schedule(self, visual: int, total: int, depth: int, *, last: bool = True) -> tuple[tuple[int, int | None], ...]:
        """Leave the counts to `choose_at` where there is no budget."""
        found = super().schedule(visual, total, depth)
        return tuple((layer, None) for layer, _ in found) if self.keep is None else found

    def score_at(self, layer: Layer) -> Tensor:
        """Return the attention of the last token to the visual tokens, without positions."""
        return layer.before.unrotated.attention(layer.last, among=layer.visual)

    def choose_at(self, scores: Tensor, layer: Layer, keep: int | None) -> Tensor:
        """Return the highest scoring tokens; at the first stage together with those on the grid."""
        order = torch.sort(scores, descending=True, stable=True).indices
        if layer.stage > 0:
            return order[: math.floor(len(scores) * self.ratio * self.ratio) if keep is None else keep]
        places = layer.positions[:, 2:]
        on_grid = ((places >= 0) & (places % self.stride == 0)).all(1)
        if keep is None:
            on_grid[order[: math.floor(len(scores) * self.ratio)]] = True
            return on_grid.nonzero()[:, 0]
        # Those on the grid come first.
        return order[torch.sort(~on_grid[order], stable=True).indices][:keep]
