"""PruneSID: groups of tokens by principal components, and the most attended tokens of each that are not alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.components import group_by_component, suppress
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class PruneSID(Pruner):
    """Keep from every group of related tokens those that receive most attention and differ from each other.

    There are a quarter as many groups as kept tokens. A token belongs to the principal component it weighs most in.
    Inside a group, tokens are taken in the order of the attention they receive in the vision tower, and each removes
    the tokens whose cosine to it exceeds k / 32 times the mean cosine of the image, with k the budget. Every group
    keeps at least one token; the rest of the budget is dealt out in proportion to the tokens that are left. A group
    with more places than tokens left takes removed tokens back.

    Source: "Prune Redundancy, Preserve Essence: Vision Token Compression in VLMs via Synergistic Importance-Diversity",
    arXiv 2603.09480, ICLR 2026, with the constants of the released code for LLaVA. The released code finds components
    by a random method without a seed; here they are exact. It keeps the class token as well; here its place goes to a
    patch. Its threshold is set for 576 tokens. The budgets that depend on the complexity of an image, which the paper
    adds for comparisons at the same average, are not part of this method.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.

    Notes
    -----
        token i removes every later token j with cos(x_i, x_j) > k / 32 · mean cosine
        group of i  = argmax_m |w_im|, m = 1 ... k / 4
        places of g ≈ 1 + (k − k / 4) · n_g / Σ_g n_g, at most 5 ⌈k / 64⌉ where possible

        x_i: features; w_im: weight of token i in principal component m of their sigmoid
        tokens of a group come by falling attention; k: tokens to keep
        n_g: tokens of group g that are not removed
    """

    name: ClassVar[str] = "prunesid"
    source: ClassVar[str] = "PruneSID, arXiv 2603.09480"
    needs: ClassVar[tuple[str, ...]] = ("tower_attention",)
    scores_label: ClassVar[str] = "attention received"

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives."""
        return tokens.signals["tower_attention"][:, 0]

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Group the tokens, suppress look-alikes, and keep each group's share."""
        count, total = max(1, keep // 4), len(tokens)
        group = group_by_component(tokens.features, count)
        unit = F.normalize(tokens.features.float(), dim=-1)
        cosines = unit @ unit.T
        mean = (cosines.sum() - cosines.diagonal().sum()) / max(1, total * (total - 1))
        order = scores.sort(descending=True, stable=True).indices.cpu()
        inside = cosines.where(group[:, None] == group, -torch.inf)
        left, group = suppress(inside, order, float(keep / 32 * mean)), group.cpu()
        # First the tokens that are left, then the others, both by attention.
        order = order[left[order].int().sort(descending=True, stable=True).indices]
        sizes, survivors = (members.bincount(minlength=count).tolist() for members in (group, group[left]))
        quotas = _quotas(sizes, survivors, keep)
        chosen = [order[group[order] == number][:quota] for number, quota in enumerate(quotas)]
        return torch.cat(chosen).to(scores.device)


def _quotas(sizes: list[int], left: list[int], keep: int) -> list[int]:
    """Return how many tokens each group keeps, given the sizes of the groups and how many of them are left."""
    least = [min(1, size) for size in sizes]
    most = [min(5 * math.ceil(keep / 64), size) for size in left]
    while sum(most) < keep:
        most = [min(bound + 1, size) for bound, size in zip(most, sizes, strict=True)]
    free = keep - sum(least)
    # Dealing out rounded running sums gives away exactly what is free.
    ends = [round(free * end / sum(left)) for end in accumulate(left)]
    dealt = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    quotas = [min(one + two, bound) for one, two, bound in zip(least, dealt, most, strict=True)]
    for group in sorted(range(len(sizes)), key=lambda group: -left[group]):
        quotas[group] += min(most[group] - quotas[group], keep - sum(quotas))
    return quotas
