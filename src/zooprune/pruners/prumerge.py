"""LLaVA-PruMerge: keep the tokens of outstanding attention, and add the others to them."""

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

    These tokens are the centres. To each centre the 32 tokens of highest key cosine are added, each times its
    attention. All tokens that are no centre, each times its attention, are summed into a rest token, which takes the
    place of the strongest of them. Merging happens in front of the projector. Attention and keys are those of the
    tower's last layer, with the heads side by side as a single head, as in the released code. Towers without a class
    token use the mean attention of all patches.

    Source: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", arXiv 2403.15388, ICCV
    2025. In the paper the number of tokens depends on the image; here the budget is met unless `native` is set. The
    released code sorts the tokens by attention; here they keep their place in the image.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them, the rest token included. A budget of 1 has no rest token.
    native : bool
        Let the image decide how many tokens stay, as the paper does: the centres are the tokens whose attention exceeds
        the third quartile by more than 1.5 times the interquartile range. `keep` is then ignored, unless it keeps all.

    Notes
    -----
        y_c  = x_c + Σ_{j ∈ N(c)} a_j x_j
        rest = Σ_{j no centre} a_j x_j

        c: a centre, one of the k − 1 tokens of largest a; x_j: features of token j
        a_j: attention that token j receives; N(c): the 32 tokens of nearest keys
        y_c, rest: features that the projector reads
    """

    name: ClassVar[str] = "prumerge"
    source: ClassVar[str] = "LLaVA-PruMerge, arXiv 2403.15388"
    needs: ClassVar[tuple[str, ...]] = ("tower_joint_attention/-1", "tower_joint_keys/-1")
    scores_label: ClassVar[str] = "attention received"
    merges: ClassVar[bool] = True

    native: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.native, bool):
            raise TypeError(f"native must be True or False, not {self.native!r}")

    def is_exact(self) -> bool:
        """Return whether the budget is met; natively the image decides."""
        return not self.native

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives."""
        return tokens.signals["tower_joint_attention/-1"][:, 0]

    def centres(self, scores: Tensor, keep: int) -> Tensor:
        """Return the centres, in any order."""
        count = _outliers(scores) if self.native else max(1, keep - 1)
        return scores.sort(descending=True, stable=True).indices[:count]

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Selection:
        """Pick the centres, and add the other tokens to them."""
        total = len(tokens)
        if keep == total:
            everything = torch.arange(total, device=scores.device)
            return Selection(everything, total, into=everything)
        centres = self.centres(scores, keep).sort().values
        return self._merged(scores, tokens, centres, rest=self.native or keep > 1)

    def _merged(self, scores: Tensor, tokens: VisualTokens, centres: Tensor, *, rest: bool) -> Selection:
        total, features = len(tokens), tokens.features.float()
        unit = F.normalize(tokens.signals["tower_joint_keys/-1"].float(), dim=-1)
        rows = torch.arange(len(centres), device=scores.device)
        cosines = unit[centres] @ unit.T
        cosines[rows, centres] = -torch.inf
        near = cosines.sort(descending=True, stable=True).indices[:, : min(_NEIGHBOURS, total - 1)]
        weights = torch.zeros_like(cosines).scatter_(1, near, scores[near])
        weights[rows, centres] = 1.0
        # A dropped token is held by the nearest of the centres it is added to, or else by the rest token.
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
    """PruMerge with further centres, spread evenly over the image.

    A quarter of the centres are the tokens of most attention. The others are evenly spaced among the remaining tokens.
    This is about the published mix. All else is as in PruMerge.

    Source: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", arXiv 2403.15388, ICCV
    2025, the variant PruMerge+.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them, the rest token included.
    native : bool
        Let the image decide how many tokens stay, as the paper does: the centres of PruMerge, and about three times as
        many evenly spaced tokens. As in the released code, the last token of the image is never among the latter.
        `keep` is then ignored, unless it keeps all.

    Notes
    -----
        y_c  = x_c + Σ_{j ∈ N(c)} a_j x_j
        rest = Σ_{j no centre} a_j x_j

        c: a centre: round((k − 1) / 4) tokens of largest a, and evenly spaced others
        a_j, x_j: attention and features of token j; N(c): the 32 tokens of nearest keys
        y_c, rest: features that the projector reads
    """

    name: ClassVar[str] = "prumerge_plus"
    source: ClassVar[str] = "LLaVA-PruMerge+, arXiv 2403.15388"

    def centres(self, scores: Tensor, keep: int) -> Tensor:
        """Return the centres, in any order."""
        total, order = len(scores), scores.sort(descending=True, stable=True).indices
        if self.native:
            strongest = _outliers(scores)
            # The released code fails with a step of zero where more than a third of the tokens are outliers.
            step = max(1, total // strongest // 3)
            return torch.cat([order[:strongest], torch.arange(0, total - 1, step, device=scores.device)]).unique()
        count = max(1, keep - 1)
        strongest = max(1, round(count / 4))
        rest, spaced = order[strongest:].sort().values, count - strongest
        places = torch.arange(spaced, device=scores.device) * len(rest) // max(1, spaced)
        return torch.cat([order[:strongest], rest[places]])


def _outliers(scores: Tensor) -> int:
    """Return how many scores are outliers above the third quartile, and at least 1."""
    low, high = torch.quantile(scores, torch.tensor([0.25, 0.75], device=scores.device))
    return max(1, int((scores > high + 1.5 * (high - low)).sum()))
