"""EADP: coverage of the image, weighted by the words of the question that point somewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.facility import facility_location
from zooprune.selection.smoothing import smooth
from zooprune.tokens import VisualTokens

#: What similarities are multiplied by before the softmax over visual tokens, as published.
_SHARPNESS = 100.0
#: The share of text tokens that are used, those of lowest entropy, as published.
_SHARE = 0.2
#: The temperature of the weights of these tokens, as published.
_TEMPERATURE = 0.01


@dataclass(frozen=True)
class EADP(Pruner):
    """Keep tokens that cover the image, with every place weighted by its relevance to the question.

    Similarity to text is minus the cosine: the published sign, which favours tokens that differ from the text. The
    relevance of a visual token mixes its similarity to the mean embedding of the text with its similarity to the text
    tokens of lowest entropy. The entropy is that of a softmax over visual tokens, so that it is low for a word that
    points to a place, and lower entropies weigh more. Relevance is brought to [0, 1], smoothed over neighbours and
    raised to a power. Then tokens are picked greedily by facility location: the coverage of a token is its largest
    similarity to a kept token, weighted by its relevance.

    Source: "Combating Textual Noise and Redundancy: Entropy-Aware Dense Visual Token Pruning", arXiv 2607.02484,
    ECCV 2026. This is the released form for Qwen2.5-VL, which compares embeddings in the language model's space; the
    form for LLaVA compares in CLIP's space. Text is the whole prompt, the template included, while the released code
    takes the instruction only. A prompt without text leaves all tokens equally relevant. With several tiles the
    released code also shares the budget among them by relevance; here the scope decides.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    whole : float
        The weight of the text as a whole against its chosen tokens, in [0, 1], alpha in the released code.
    power : float
        The power that relevance is raised to, beta in the released code: 2 for Qwen2.5-VL, 1 for LLaVA.

    Notes
    -----
        next = argmax_i Σ_j w_j · max(0, (1 + cos(z_i, z_j)) / 2 − c_j)
        w_j  = (r_j scaled to [0, 1] and smoothed over 3 x 3 tokens) ^ power
        r_j  = −whole · cos(z_j, t) − (1 − whole) · Σ_q v_q cos(z_j, t_q)

        z_j, t_q: embeddings of visual token j and of text token q; t: mean of the text
        v_q = softmax_q(−H_q / 0.01), over the fifth of the text tokens of lowest H_q
        H_q: entropy of softmax_j(−100 cos(z_j, t_q))
        c_j: largest (1 + cos) / 2 of j to a kept token; 0 at first
    """

    name: ClassVar[str] = "eadp"
    source: ClassVar[str] = "EADP, arXiv 2607.02484"
    needs: ClassVar[tuple[str, ...]] = ("question",)
    scores_label: ClassVar[str] = "relevance"
    query_aware: ClassVar[bool] = True

    whole: float = 0.5
    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("whole", "power"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        if not 0 <= self.whole <= 1:
            raise ValueError(f"whole={self.whole} is not a share in [0, 1]; the paper uses 0.5")
        if not 0 <= self.power < float("inf"):
            raise ValueError(f"power={self.power} must be finite and not negative; the paper uses 1 or 2")

    @exact_float32()
    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the relevance of each token, all ones for a prompt without text."""
        question = tokens.context["question"].float()
        if not len(question):
            return torch.ones(len(tokens), dtype=torch.float32, device=tokens.embeddings.device)
        unit = F.normalize(tokens.embeddings.float(), dim=-1)
        to_whole = -(unit @ F.normalize(question.mean(0), dim=-1))
        relevance = self.whole * to_whole + (1 - self.whole) * _to_words(unit, question)
        low, high = relevance.min(), relevance.max()
        return smooth((relevance - low + 1e-6) / (high - low + 1e-6), tokens.positions) ** self.power

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick greedily by weighted coverage."""
        return facility_location(tokens.embeddings, keep, weights=scores)


def _to_words(unit: Tensor, question: Tensor) -> Tensor:
    """Return the similarity of each visual token to the text tokens of low entropy, (N,)."""
    similarity = -(unit @ F.normalize(question, dim=-1).T)
    logarithms = (_SHARPNESS * similarity).log_softmax(0)
    entropy = -(logarithms.exp() * logarithms).sum(0)
    lowest = entropy.sort(stable=True)
    count = max(1, int(_SHARE * len(question)))
    weights = (-lowest.values[:count] / _TEMPERATURE).softmax(0)
    return similarity[:, lowest.indices[:count]] @ weights
