"""AgilePruner: attention in simple images, diversity in complex ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.components import effective_rank, suppress
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class AgilePruner(Pruner):
    """Keep tokens that receive much attention and differ from each other; complex images need larger differences.

    Tokens are taken in the order of the attention they receive from the class token, or from all patches where the
    tower has no class token. The token of rank i removes all later ones whose cosine distance to it is smaller than a
    threshold, min(i * step * erank / average, most). The effective rank of the embeddings, erank, tells how complex the
    image is: thresholds are low in a simple image, so that attention decides, and high in a complex one. Where fewer
    tokens are left than the budget, removed tokens come back in the order of attention.

    Source: "AgilePruner: An Empirical Study of Attention and Diversity for Adaptive Visual Token Pruning in Large
    Vision-Language Models", arXiv 2603.01236, ICLR 2026. The authors have not released the code; rule and constants are
    those of a public fork of it. It finds singular values in float32, which makes the effective rank up to 2.5 % too
    large where there are more tokens than channels; here they are found in float64. With float32 inputs, but not in
    half precision, it then compares embeddings without their mean; here embeddings keep their mean. It does not prune
    at all if 576 tokens or more are to be kept; here every budget is met.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    step : float
        By how much the threshold rises from rank to rank in an image of average effective rank.
    average : float
        The effective rank of an average image: 90 on the images that LLaVA was trained on.
    most : float
        The largest threshold.

    Notes
    -----
        token i removes every later token j with 1 − cos(z_i, z_j) < τ_i
        τ_i   = min(rank_i · step · erank / average, most)
        erank = exp(−Σ_m p_m log p_m)

        rank_i: place of token i by falling attention, from 1; z_i: its embedding
        p_m: singular values of the embeddings without their mean, divided by their sum
    """

    name: ClassVar[str] = "agilepruner"
    source: ClassVar[str] = "AgilePruner, arXiv 2603.01236"
    needs: ClassVar[tuple[str, ...]] = ("tower_attention",)
    scores_label: ClassVar[str] = "attention received"

    step: float = 0.01
    average: float = 90.0
    most: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("step", "average", "most"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        if not 0 <= self.step < float("inf"):
            raise ValueError(f"step={self.step} must be finite and not negative; the authors use 0.01")
        if not 0 < self.average < float("inf"):
            raise ValueError(f"average={self.average} must be positive and finite; the authors use 90")
        if not 0 <= self.most <= 2:
            raise ValueError(f"most={self.most} must be from 0 to 2; the authors use 0.25")

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives."""
        return tokens.signals["tower_attention"][:, 0]

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Take tokens by attention, each suppressing those that are alike, and fill up with suppressed ones."""
        order = scores.sort(descending=True, stable=True).indices
        rank = torch.empty_like(scores)
        rank[order] = torch.arange(1.0, len(order) + 1, device=scores.device)
        threshold = (rank * self.step * effective_rank(tokens.embeddings) / self.average).clamp_max(self.most)
        unit = F.normalize(tokens.embeddings.float(), dim=-1)
        order = order.cpu()
        left = suppress(unit @ unit.T, order, 1 - threshold[:, None])[order]
        return torch.cat([order[left], order[~left]])[:keep]
