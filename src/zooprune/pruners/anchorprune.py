"""AnchorPrune: tokens that the question asks for, and important tokens that differ from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.expansion import expand
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class AnchorPrune(Pruner):
    """Keep the tokens most relevant to the question, and add important tokens that differ from them.

    Relevance is the largest cosine of a token to a token of the text. The anchor is a set of the most relevant tokens.
    It has a least size, and grows in the order of relevance until three of the added tokens are new, or until it takes
    half the budget. A token is new if its cosine distance to all tokens of the least anchor exceeds a threshold. Then
    the token of largest p (1 - c) is added until the budget is met, where p is the attention it receives in the vision
    tower, and c its largest cosine to a kept token. A prompt without text has no anchor, and the token of most
    attention comes first.

    Source: "AnchorPrune: Relevance-Anchored Contextual Expansion for Visual Token Pruning", arXiv 2607.07033, ECCV
    2026. This is the published form for Qwen2.5-VL, which compares embeddings in the language model's space; the form
    for LLaVA compares patches and text in CLIP's space and reverses the sign. Text is the whole prompt. The released
    code caps distances at 1; here they are as in the paper.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    least : float
        The least share of kept tokens in the anchor, in [0, 1]: 10 of 64, as published. The anchor has at least one
        token.
    most : float
        The largest share of kept tokens in the anchor, in [0, 1].
    novelty : float
        The cosine distance from which on a token is new, tau in the paper.
    patience : int
        The number of new tokens after which the anchor stops to grow, P in the paper.

    Notes
    -----
        r_i  = max_q cos(z_i, t_q)
        next = argmax_i a_i · (1 − max_{j ∈ K} cos(z_i, z_j))

        r_i: relevance; K begins as the anchor, the tokens of largest r_i
        z_i, t_q: embeddings of visual token i and of text token q
        a_i: attention that token i receives in the vision tower; K: tokens kept so far
    """

    name: ClassVar[str] = "anchorprune"
    source: ClassVar[str] = "AnchorPrune, arXiv 2607.07033"
    needs: ClassVar[tuple[str, ...]] = ("question", "tower_attention")
    scores_label: ClassVar[str] = "relevance"
    query_aware: ClassVar[bool] = True

    least: float = 10 / 64
    most: float = 0.5
    novelty: float = 0.2
    patience: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, high, published in (("least", 1, "0.156"), ("most", 1, "0.5"), ("novelty", 2, "0.2")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, not {type(value).__name__}")
            if not 0 <= value <= high:
                raise ValueError(f"{name}={value} must be from 0 to {high}; the paper uses {published}")
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ValueError(f"patience={self.patience!r} must be an int of at least 1; the paper uses 3")

    @exact_float32()
    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the relevance of each token, zeros for a prompt without text."""
        question = F.normalize(tokens.context["question"].float(), dim=-1)
        if not len(question):
            return torch.zeros(len(tokens), dtype=torch.float32, device=tokens.embeddings.device)
        return (F.normalize(tokens.embeddings.float(), dim=-1) @ question.T).amax(-1)

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Find the anchor and expand it."""
        attention = tokens.signals["tower_attention"][:, 0]
        if len(tokens.context["question"]):
            start = self.anchor(scores, tokens.embeddings, keep)
        else:
            start = attention.argmax()[None]
        return expand(tokens.embeddings, attention, start, keep)

    @exact_float32()
    def anchor(self, relevance: Tensor, embeddings: Tensor, keep: int) -> Tensor:
        """Return the tokens of the anchor, the most relevant first."""
        least = max(1, round(self.least * keep))
        most = max(least, int(self.most * keep))
        ranked = relevance.sort(descending=True, stable=True).indices[:most]
        unit = F.normalize(embeddings[ranked].float(), dim=-1)
        distance = (1 - unit[least:] @ unit[:least].T).amin(1)
        before = int(((distance > self.novelty).cumsum(0) < self.patience).sum())
        # The last new token still belongs to the anchor.
        return ranked[: min(least + before + 1, most)]
