"""HoloV: a budget for every crop of the image, so that no region is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.tokens import VisualTokens

#: What keeps the rescaling of variances finite where they are all zero.
_LEAST = 1e-6


@dataclass(frozen=True)
class HoloV(Pruner):
    """Divide the image into crops, deal the budget out to them, and keep the highest scoring tokens of each.

    Crops are runs of tokens in raster order, and their lengths differ by at most 1. A token's score is its attention
    plus the weighted variance of its cosines to the other tokens of its crop. The variance is first rescaled so that
    its mean over the crop equals the mean attention. Crops get places in proportion to their mean score, and the
    highest scoring tokens of a crop fill its places. Places that exceed the size of a crop go to the others, again in
    proportion.

    Source: "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention",
    arXiv 2510.02912, NeurIPS 2025. The released code differs from the paper: it fills the places of a crop by attention
    alone. Because of the rescaling, the variance cancels out of the number of places as well. The released code also
    fills places that exceed the size of a crop with zero vectors; here they are dealt again in either form.
    The paper's exponent of crop weights is 1, as in the released code.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    crops : int, optional
        How many crops. None is the published rule: 1024 / keep for 576 tokens, and in proportion for other numbers.
    variance : float
        The weight of the variance.
    official : bool
        Choose inside the crops by attention alone, as the released code does.

    Notes
    -----
        score_i  = a_i + variance · v_i · mean(a) / mean(v)
        places_c = k · w_c / Σ_c w_c

        a_i: attention that token i receives in the vision tower
        v_i: variance of its cosines to the others of its crop; means over the crop
        places_c: tokens kept of crop c, k in all; w_c: mean score of the crop
    """

    name: ClassVar[str] = "holov"
    source: ClassVar[str] = "HoloV, arXiv 2510.02912"
    needs: ClassVar[tuple[str, ...]] = ("tower_attention",)
    scores_label: ClassVar[str] = "attention received"

    crops: int | None = None
    variance: float = 0.09
    official: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crops is not None and (isinstance(self.crops, bool) or not isinstance(self.crops, int)):
            raise TypeError(f"crops must be an int or None, not {type(self.crops).__name__}")
        if self.crops is not None and self.crops < 1:
            raise ValueError(f"crops={self.crops} must be at least 1; the paper uses 16 for 64 of 576 tokens")
        if isinstance(self.variance, bool) or not isinstance(self.variance, (int, float)):
            raise TypeError(f"variance must be a float, not {type(self.variance).__name__}")
        if not 0 <= self.variance < float("inf"):
            raise ValueError(f"variance={self.variance} must be finite and not negative; the paper uses 0.09")
        if not isinstance(self.official, bool):
            raise TypeError(f"official must be True or False, not {self.official!r}")

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives."""
        return tokens.signals["tower_attention"][:, 0]

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Deal the budget to the crops, and pick the best tokens of each."""
        total = len(tokens)
        crops = min(self.crops or max(1, 1024 * total // (576 * keep)), total)
        members = torch.arange(total, device=scores.device).tensor_split(crops)
        # (crops, M), where a place beyond the end of a shorter crop holds -1.
        places = pad_sequence(list(members), batch_first=True, padding_value=-1)
        filled = places >= 0
        attention = scores[places].where(filled, 0.0)
        lengths = filled.sum(1, keepdim=True)
        variance = _variance(tokens.embeddings[places], filled)
        scale = attention.sum(1, keepdim=True) / (variance.sum(1, keepdim=True) + _LEAST * lengths)
        combined = attention + self.variance * scale * variance
        worth = combined.sum(1) / lengths[:, 0]
        quotas = torch.tensor(_deal(keep, worth.tolist(), [len(crop) for crop in members]), device=scores.device)
        ranked = (attention if self.official else combined).masked_fill(~filled, -torch.inf)
        order = ranked.sort(descending=True, stable=True).indices
        taken = torch.arange(places.shape[1], device=scores.device) < quotas[:, None]
        return places.gather(1, order)[taken]


def _variance(embeddings: Tensor, filled: Tensor) -> Tensor:
    """Return the variance of each token's cosines inside its crop: (C, M, d) and (C, M) -> (C, M).

    As published, a token's cosine to itself counts as zero, and the divisor is the number of the others.
    """
    unit = F.normalize(embeddings.float(), dim=-1)
    pairs = filled[:, :, None] & filled[:, None, :]
    itself = torch.eye(filled.shape[1], dtype=torch.bool, device=filled.device)
    cosines = (unit @ unit.mT).where(pairs & ~itself, 0.0)
    others = (filled.sum(1) - 1).clamp_min(1)[:, None]
    mean = cosines.sum(2) / others
    return (cosines - mean[:, :, None]).where(pairs, 0.0).square().sum(2) / others


def _deal(keep: int, weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Return how many places each crop gets: in proportion to its weight, rounded down, the rest to the heaviest.

    Places that exceed the size of a crop are dealt again to the crops that have room.
    """
    quotas = [0] * len(sizes)
    while (left := keep - sum(quotas)) > 0:
        open_to = [crop for crop, size in enumerate(sizes) if quotas[crop] < size]
        whole = sum(weights[crop] for crop in open_to)
        shares = {crop: weights[crop] / whole if whole > 0 else 1 / len(open_to) for crop in open_to}
        given = {crop: int(share * left) for crop, share in shares.items()}
        for crop in sorted(open_to, key=lambda crop: -shares[crop])[: left - sum(given.values())]:
            given[crop] += 1
        for crop, more in given.items():
            quotas[crop] = min(quotas[crop] + more, sizes[crop])
    return quotas
