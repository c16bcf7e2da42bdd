"""LLaVA-PruMerge: keep the tokens that stand out by attention, and add the others to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.merging import own_places
from zooprune.tokens import Selection, VisualTokens

#: How many neighbours are added to each kept token, as published.
_NEIGHBOURS = 32


@dataclass(frozen=True)
class PruMerge(Pruner):
    """Keep the tokens that the class token attends to most, and add to each the tokens whose keys are nearest.

    To every kept token the 32 tokens of highest key cosine are added, each times its attention. All tokens that are
    not kept, each times its attention, make one more token, which takes the place of the strongest of them. Merging
    happens in front of the projector. Attention and keys are those of the tower's last layer with all heads taken for
    one, as the released code computes them; towers without a class token use the mean attention of all patches.

    Source: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", arXiv 2403.15388, ICCV
    2025. There the number of tokens depends on the image; here the budget is met unless `native` is set. The released
    code puts the tokens in the order of their attention; here they keep their place in the image.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them, the one made of all others included. With a budget of one there is no
        token for all others.
    native : bool
        Keep as many tokens as the paper does, and one more: those whose attention lies above the third quartile by more
        than one and a half times the distance between the quartiles. `keep` then matters only if it keeps everything.
    """

    name: ClassVar[str] = "prumerge"
    source: ClassVar[str] = "LLaVA-PruMerge, arXiv 2403.15388"
    needs: ClassVar[tuple[str, ...]] = ("tower_joint_attention/-1", "tower_joint_keys/-1")
    scores_label: ClassVar[str] = "attention received"

    native: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.native, bool):
            raise TypeError(f"native must be True or False, not {self.native!r}")
        if self.native:
            # The class describes the default; only this instance keeps another number than it is asked for.
            object.__setattr__(self, "exact", False)

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives."""
        return tokens.signals["tower_joint_attention/-1"][:, 0]

    def centres(self, scores: Tensor, count: int) -> Tensor:
        """Return the tokens that others are added to, given how many; in any order."""
        return scores.sort(descending=True, stable=True).indices[:count]

    def native_centres(self, scores: Tensor, outliers: int) -> Tensor:
        """Return the tokens that others are added to, given how many stand out by attention; in any order."""
        return scores.sort(descending=True, stable=True).indices[:outliers]

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Selection:
        """Pick the tokens to add to, and add the others."""
        total = len(tokens)
        if keep == total:
            everything = torch.arange(total, device=scores.device)
            return Selection(everything, total, into=everything)
        if self.native:
            centres = self.native_centres(scores, max(1, _outliers(scores)))
        else:
            centres = self.centres(scores, max(1, keep - 1))
        return self._merged(scores, tokens, centres.sort().values, rest=self.native or keep > 1)

    def _merged(self, scores: Tensor, tokens: VisualTokens, centres: Tensor, *, rest: bool) -> Selection:
        total, features = len(tokens), tokens.features.float()
        unit = F.normalize(tokens.signals["tower_joint_keys/-1"].float(), dim=-1)
        rows = torch.arange(len(centres), device=scores.device)
        cosines = unit[centres] @ unit.T
        cosines[rows, centres] = -torch.inf
        near = cosines.sort(descending=True, stable=True).indices[:, : min(_NEIGHBOURS, total - 1)]
        weights = torch.zeros_like(cosines).scatter_(1, near, scores[near])
        weights[rows, centres] = 1.0
        # A dropped token is held by the nearest of the tokens it is added to, or else by the one made of all others.
        added = torch.zeros_like(cosines, dtype=torch.bool).scatter_(1, near, True)
        closeness, nearest = cosines.where(added, -torch.inf).max(0)
        left = scores.index_fill(0, centres, 0.0)
        if rest and len(centres) < total:
            place = scores.index_fill(0, centres, -torch.inf).argmax()[None]
            index, order = torch.cat([centres, place]).sort()
            weights = torch.cat([weights, left[None]])[order]
            others = torch.searchsorted(index, place)
        else:
            index, others = centres, torch.full((1,), -1, device=scores.device)
        places = own_places(index, total)
        held = torch.where(closeness > -torch.inf, places[centres[nearest]], others)
        mixed = (weights @ features).to(tokens.features.dtype)
        return Selection(index, total, merged=tokens.projector(mixed), into=torch.where(places < 0, held, places))


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge that also adds to tokens spread evenly over the image.

    Of the tokens that others are added to, a quarter are those of most attention, and the others are evenly spaced
    among those that are left: about the published mix. All else is as in PruMerge.

    Source: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", arXiv 2403.15388, ICCV
    2025, the variant PruMerge+.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them, the one made of all others included.
    native : bool
        Keep as many tokens as the paper does: those that stand out by attention, and evenly spaced ones, of which there
        are about three times as many. As released, the last token of the image is never among these. `keep` then
        matters only if it keeps everything.
    """

    name: ClassVar[str] = "prumerge_plus"
    source: ClassVar[str] = "LLaVA-PruMerge+, arXiv 2403.15388"

    def centres(self, scores: Tensor, count: int) -> Tensor:
        """Return the tokens that others are added to, given how many; in any order."""
        total, strongest = len(scores), max(1, round(count / 4))
        order = scores.sort(descending=True, stable=True).indices
        rest, spaced = order[strongest:].sort().values, count - strongest
        steps = torch.arange(spaced, device=scores.device) * (total - strongest) // max(1, spaced)
        return torch.cat([order[:strongest], rest[steps]])

    def native_centres(self, scores: Tensor, outliers: int) -> Tensor:
        """Return the tokens that others are added to, given how many stand out by attention; in any order."""
        total = len(scores)
        strongest = scores.sort(descending=True, stable=True).indices[:outliers]
        # The released code divides by zero where more than a third of the tokens stand out.
        step = max(1, total // outliers // 3)
        return torch.cat([strongest, torch.arange(0, max(1, total - 1), step, device=scores.device)]).unique()


def _outliers(scores: Tensor) -> int:
    """Return how many scores lie far above the third quartile."""
    low, high = torch.quantile(scores, torch.tensor([0.25, 0.75], device=scores.device))
    return int((scores > high + 1.5 * (high - low)).sum())
