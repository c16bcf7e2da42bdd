"""CATP: tokens that stand for the image and agree with the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.facility import facility_location
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class CATP(Pruner):
    """Keep tokens that cover the image and are similar to its text.

    This is stage 1 of the paper, which prunes behind the projector. The kept set grows greedily. Each token is worth
    what it adds to the coverage of all tokens, plus a weight times its similarity to the mean embedding of the text.
    Similarities are cosines brought to [0, 1]. The paper prunes the images of in-context examples, and pairs each image
    with the text of its own example. Here the text is the whole prompt, as the language model's own table embeds it.
    Stage 2 prunes inside the language model and is not part of this method.

    Source: "CATP: Contextually Adaptive Token Pruning for Efficient and Enhanced Multimodal In-Context Learning",
    arXiv 2508.07871, AAAI 2026, stage 1. There is no released code. The paper removes half of the budget in each stage;
    here the budget is that of stage 1.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    alignment : float
        The weight of the similarity to the text, lambda_1 in the paper.
    """

    name: ClassVar[str] = "catp"
    source: ClassVar[str] = "CATP, arXiv 2508.07871"
    needs: ClassVar[tuple[str, ...]] = ("question",)
    scores_label: ClassVar[str] = "similarity to the text"
    query_aware: ClassVar[bool] = True

    alignment: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.alignment, bool) or not isinstance(self.alignment, (int, float)):
            raise TypeError(f"alignment must be a number, not {type(self.alignment).__name__}")
        if not 0 <= self.alignment < float("inf"):
            raise ValueError(f"alignment={self.alignment} must be finite and not negative; the paper uses 0.7")

    @exact_float32()
    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the similarity of each token to the text, zeros for a prompt without text."""
        question = tokens.context["question"].float()
        if not len(question):
            return torch.zeros(len(tokens), dtype=torch.float32, device=tokens.embeddings.device)
        unit = F.normalize(tokens.embeddings.float(), dim=-1)
        return (unit @ F.normalize(question.mean(0), dim=-1) + 1) / 2

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick greedily by coverage and similarity to the text."""
        return facility_location(tokens.embeddings, keep, bonus=self.alignment * scores)
