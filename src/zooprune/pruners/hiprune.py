"""HiPrune: tokens of the main objects, their neighbours, and tokens that summarise the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zooprune.pruners.base import Pruner
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class HiPrune(Pruner):
    """Keep tokens with most attention in the middle of the tower, their neighbours, and tokens with most at its end.

    Anchors receive the most attention in a middle layer, which attends to objects. Buffers are the tokens above, below
    and beside them. Registers fill the budget: of the tokens that are left, those that receive the most attention in
    the layer whose output the projector reads, which attends to the image as a whole. Attention is averaged over all
    tokens that pay it, the class token among them.

    Source: "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models",
    arXiv 2508.00553. The released code finds neighbours by adding to a token's index, so that the last token of a row
    counts as a neighbour of the first token of the next row. Here neighbours are next to each other in the image.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    alpha : float
        The share of kept tokens that are anchors or buffers, in [0, 1]; a fifth of these are anchors. Where anchors and
        buffers exceed the budget, the buffers of most attention stay.
    layer : int or float
        The middle layer: its index, from the end if negative, or a share of the tower's depth. The default is the
        ninth of 24 layers, as published for CLIP; for Qwen2.5-VL the paper uses 0.5.

    Notes
    -----
        anchors   = the round(k · alpha / 5) tokens of largest m_i
        buffers   = tokens next to an anchor in row or column, by falling m_i
        registers = all others, by falling a_i
        kept      = the first k of anchors, buffers, registers

        m_i, a_i: mean attention that token i receives in the middle layer, and in the
                  layer that the projector reads; k: tokens to keep
    """

    name: ClassVar[str] = "hiprune"
    source: ClassVar[str] = "HiPrune, arXiv 2508.00553"
    scores_label: ClassVar[str] = "attention received"

    alpha: float = 0.1
    layer: int | float = 0.375

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "layer"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} is not a share in [0, 1]; the paper uses 0.1")
        if isinstance(self.layer, float) and not 0 < self.layer <= 1:
            raise ValueError(f"layer={self.layer} is not a share in (0, 1]; give an int for the number of a layer")

    def reads(self) -> tuple[str, ...]:
        """Return the attention of the layer that the projector reads, and that of the middle layer."""
        return "tower_received", f"tower_received/{self.layer}"

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives in the layer that the projector reads."""
        return tokens.signals["tower_received"][:, 0]

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Rank anchors before buffers and these before all others, each by their own attention."""
        middle = tokens.signals[self.reads()[1]][:, 0].float()
        anchors = middle.sort(descending=True, stable=True).indices[: round(keep * self.alpha / 5)]
        away = (tokens.positions[:, None] - tokens.positions[anchors]).abs()
        beside = (away[..., :2].sum(-1) == 0) & (away[..., 2:].sum(-1) == 1)
        rank = beside.any(1).int().index_fill(0, anchors, 2)
        order = torch.where(rank > 0, middle, scores).sort(descending=True, stable=True).indices
        return order[rank[order].sort(descending=True, stable=True).indices[:keep]]
