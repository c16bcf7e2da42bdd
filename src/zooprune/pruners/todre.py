"""ToDRE: a set of tokens as diverse as a greedy search finds, around the token of most attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zooprune.pruners.base import Pruner
from zooprune.selection.max_sum import greedy_max_sum
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class ToDRE(Pruner):
    """Keep the token of most attention, and then always the token least similar to all kept ones together.

    This is stage 1 of the paper, which prunes in front of the language model. The first token receives the most
    attention in the last layer of the vision tower, from the class token where there is such a token, and from all
    patches otherwise; the paper draws it at random there. Every further token has the smallest sum of cosines to the
    kept ones. Stage 2, which drops all visual tokens inside the language model, is not part of this method.

    Source: "ToDRE: Visual Token Pruning via Diversity and Task Awareness for Efficient Large Vision-Language Models",
    arXiv 2505.18757, stage 1. There is no released code. With several tiles the paper takes the first token from the
    thumbnail; here it is the token of most attention in all tiles.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    """

    name: ClassVar[str] = "todre"
    source: ClassVar[str] = "ToDRE, arXiv 2505.18757"
    needs: ClassVar[tuple[str, ...]] = ("tower_attention/-1",)
    scores_label: ClassVar[str] = "attention received"

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives."""
        return tokens.signals["tower_attention/-1"][:, 0]

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick greedily by sums of cosines."""
        return greedy_max_sum(tokens.embeddings, scores.argmax(), keep)
