"""SCOPE: coverage times attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.arguments import check_rows
from zooprune.selection.facility import greedy_coverage
from zooprune.tokens import VisualTokens

#: Cosines are worked out to some 1e-7, so gains in coverage that differ by less than this are taken for the same.
_SAME = 1e-6


@dataclass(frozen=True)
class Scope(Pruner):
    """Keep tokens that cover the image and receive attention.

    The coverage of a token is its largest cosine to a kept token, by their features in front of the projector; a
    negative cosine counts as no coverage. Each step picks the token of largest g_i a_i^alpha, where g_i is what token i
    adds to the coverage of all tokens, and a_i is the attention it receives from the class token, or from all patches
    where the tower has no class token.

    Source: "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs", arXiv 2510.24214, NeurIPS
    2025, Section 3; features and layer as in the released code. With several tiles the released code gives each the
    same share of the budget; here the scope decides.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    power : float
        The power that attention is raised to, alpha in the paper; 1 in the released scripts.

    Notes
    -----
        next = argmax_i g_i · a_i^power
        g_i  = Σ_j max(0, cos(x_i, x_j) − c_j)

        x_i: features of token i, before the projector
        a_i: attention that token i receives, divided by the largest
        c_j: largest cosine of token j to a kept token; 0 at first, and never below
    """

    name: ClassVar[str] = "scope"
    source: ClassVar[str] = "SCOPE, arXiv 2510.24214"
    needs: ClassVar[tuple[str, ...]] = ("tower_attention",)
    scores_label: ClassVar[str] = "attention received"

    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.power, bool) or not isinstance(self.power, (int, float)):
            raise TypeError(f"power must be a number, not {type(self.power).__name__}")
        if not 0 <= self.power < float("inf"):
            raise ValueError(f"power={self.power} must be finite and not negative; the released scripts use 1")

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives."""
        return tokens.signals["tower_attention"][:, 0]

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick greedily by coverage times attention."""
        check_rows(tokens.features, keep)
        unit = F.normalize(tokens.features.float(), dim=-1)
        # Brought to at most 1 first, because a power of small numbers may leave nothing of them.
        worth = (scores / scores.max().clamp_min(1e-30)) ** self.power
        return greedy_coverage(unit @ unit.T, keep, weights=torch.ones_like(scores), worth=worth, tie=_SAME)
