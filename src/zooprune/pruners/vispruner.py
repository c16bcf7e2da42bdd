"""VisPruner: the tokens the tower attends to, and of the others those that have no duplicate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.tokens import VisualTokens

#: How many duplicates are removed before tokens are compared anew, as released.
_PER_ROUND = 8


@dataclass(frozen=True)
class VisPruner(Pruner):
    """Keep the tokens that receive most attention in the vision tower, and remove duplicates among the others.

    Important tokens are those with the most attention from the class token, or from all patches where the tower has no
    class token. The others are ordered by attention and thinned out in rounds until the budget is met. In each round
    they are split alternately into two sets, and the eight tokens of the first set that have the highest cosine to a
    token of the second set are removed. The next round begins with what is left of the first set, the most similar
    tokens first, and goes on with the second set. The features in front of the projector are compared.

    Source: "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
    arXiv 2412.01818, ICCV 2025, Section 4; rounds and order as in the released code.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    important : float
        The share of kept tokens that are picked by attention, in [0, 1]; rounded down.

    Notes
    -----
        important: the ⌊important · k⌋ tokens of largest a_i
        each round removes up to 8 tokens i ∈ A of largest max_{j ∈ B} cos(x_i, x_j)

        a_i: attention that token i receives in the vision tower; x_i: its features
        A, B: every other one of the tokens that are left; k: tokens to keep
    """

    name: ClassVar[str] = "vispruner"
    source: ClassVar[str] = "VisPruner, arXiv 2412.01818"
    needs: ClassVar[tuple[str, ...]] = ("tower_attention",)
    scores_label: ClassVar[str] = "attention received"

    important: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.important, bool) or not isinstance(self.important, (int, float)):
            raise TypeError(f"important must be a float, not {type(self.important).__name__}")
        if not 0 <= self.important <= 1:
            raise ValueError(f"important={self.important} is not a share in [0, 1]; the paper uses 0.5")

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives."""
        return tokens.signals["tower_attention"][:, 0]

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick the important tokens, and thin out the others."""
        order = torch.sort(scores, descending=True, stable=True).indices
        important = int(self.important * keep)
        return torch.cat([order[:important], _distinct(tokens.features, order[important:], keep - important)])


def _distinct(features: Tensor, order: Tensor, keep: int) -> Tensor:
    """Return so many tokens out of `order` that have no near duplicate, in any order."""
    unit = F.normalize(features.float(), dim=-1)
    # Worked out once: there are dozens of rounds, and each compares half of the tokens that are left with the others.
    cosines = unit @ unit.T
    while (surplus := len(order) - keep) > 0:
        first, second = order[::2], order[1::2]
        # The last token has nothing to be compared with.
        if not len(second):
            return order[:keep]
        removed = min(_PER_ROUND, surplus, len(first))
        likeness = cosines[first[:, None], second].amax(1)
        by_likeness = likeness.sort(descending=True, stable=True).indices
        order = torch.cat([first[by_likeness[removed:]], second])
    return order
