"""ZOO-Prune with a part of the budget for what the question names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.zoo import ZooPrune
from zooprune.selection import greedy_diverse, rescale
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class ZooAsked(ZooPrune):
    """Keep the tokens most similar to a word of the question, and fill the budget with ZOO-Prune's picks.

    A part of the budget goes to the tokens whose largest cosine to a token of the prompt's text is largest, compared in
    the language model's embedding space. The others are picked as ZOO-Prune picks them, in its order. A small budget
    has no room for everything in an image, and ZOO-Prune alone cannot know what the question is about. For a prompt
    without text, this method is ZOO-Prune.

    Source: this project, docs/standing-in.md, where the share was chosen and confirmed with kept tokens that stand in
    for the dropped ones; the rest is ZOO-Prune, arXiv 2509.24837.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    asked : float
        The share of kept tokens that the question decides, in [0, 1]; rounded down.

    Notes
    -----
        kept = the ⌊asked · k⌋ tokens of largest r_i, then ZOO-Prune's picks in order
        r_i  = max_q cos(z_i, t_q)

        z_i, t_q: embeddings of visual token i and of text token q; k: tokens to keep
    """

    name: ClassVar[str] = "zoo_asked"
    source: ClassVar[str] = "zooprune; ZOO-Prune, arXiv 2509.24837"
    needs: ClassVar[tuple[str, ...]] = ("question",)
    query_aware: ClassVar[bool] = True

    asked: float = 0.125

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.asked, bool) or not isinstance(self.asked, (int, float)):
            raise TypeError(f"asked must be a number, not {type(self.asked).__name__}")
        if not 0 <= self.asked <= 1:
            raise ValueError(f"asked={self.asked} is not a share in [0, 1]; 0.125 was measured")

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick what the question names, and fill up with ZOO-Prune's picks."""
        worth = self.weighted(rescale(scores), tokens.embeddings) if self.distinctive else scores
        picked = greedy_diverse(self.compared(tokens.embeddings), worth, keep, fusion=self.fusion)
        question = tokens.context["question"]
        if not len(question):
            return picked
        likeness = F.normalize(tokens.embeddings.float(), dim=-1) @ F.normalize(question.float(), dim=-1).T
        named = likeness.amax(-1).sort(descending=True, stable=True).indices[: int(self.asked * keep)]
        return torch.cat([named, picked[~torch.isin(picked, named)]])[:keep]
