"""Merging tokens: which tokens are merged, and what they become."""

from __future__ import annotations

from operator import index as as_int

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.averaging import summed
from zooprune.precision import all_finite, exact_float32


def own_places(index: Tensor, total: int) -> Tensor:
    """Return the place in `index` of every token that is in it, and -1 for all others.

    Parameters
    ----------
    index : Tensor of int64, (k,)
        Tokens, each at most once.
    total : int
        How many tokens there are.

    Returns
    -------
    Tensor of int64, (total,)
    """
    places = torch.full((total,), -1, device=index.device)
    places[index] = torch.arange(len(index), device=index.device)
    return places


@torch.no_grad()
@exact_float32()
def bipartite_merge(metric: Tensor, keep: int, *, per_round: int | None = None) -> Tensor:
    """Merge tokens in rounds of bipartite soft matching until `keep` are left.

    In each round the tokens, in their order, fall alternately into the sets A and B. Every token of A is matched with
    the token of B that has the highest cosine to it, and the pairs with the highest cosines are merged into the token
    of B. A merged token's metric is the mean over all tokens it holds.

    Source: Bolya et al., "Token Merging: Your ViT But Faster", arXiv 2210.09461, ICLR 2023, Section 3. The released
    code reorders the tokens after each round; here they keep their order.

    Parameters
    ----------
    metric : Tensor, (N, d)
        What is compared.
    keep : int
        How many tokens are left; from N on nothing is merged.
    per_round : int, optional
        Pairs that are merged in a round, r in the paper; never more than half of the tokens. None merges half.

    Returns
    -------
    Tensor of int64, (N,)
        For each token the index of the token that holds it: its own index if it is left. Ties go to the lowest index.

    Raises
    ------
    ValueError
        If the metric is not (N, d), is empty or holds NaN or infinity, or `keep` or `per_round` is not positive.
    """
    if metric.ndim != 2 or metric.numel() == 0:
        raise ValueError(f"the metric must be (N, d) and not empty, got {tuple(metric.shape)}")
    if as_int(keep) < 1:
        raise ValueError(f"keep={keep} must be at least 1")
    if per_round is not None and as_int(per_round) < 1:
        raise ValueError(f"per_round={per_round} must be at least 1")
    if not bool(all_finite(metric)):
        raise ValueError("the metric holds NaN or infinity; check the image, or run the model in bfloat16 or float32")
    sums, sizes = metric.float(), torch.ones(len(metric), device=metric.device)
    holder = torch.arange(len(metric), device=metric.device)
    # The tokens that are left, by the index they began with.
    left = holder
    while len(left) > keep:
        merging = min(per_round or len(left), len(left) // 2, len(left) - keep)
        unit = F.normalize(sums / sizes[:, None], dim=-1)
        best, match = (unit[::2] @ unit[1::2].T).max(1)
        first = best.sort(descending=True, stable=True).indices[:merging]
        gone, into = 2 * first, 2 * match[first] + 1
        sums, sizes = summed(sums, into, sums[gone]), summed(sizes, into, sizes[gone])
        becomes = torch.arange(len(metric), device=metric.device)
        becomes[left[gone]] = left[into]
        holder = becomes[holder]
        stays = torch.ones(len(left), dtype=torch.bool, device=metric.device)
        stays[gone] = False
        # How many stay is known, so that the host need not wait for the device.
        order = stays.int().sort(descending=True, stable=True).indices[: len(left) - merging]
        left, sums, sizes = left[order], sums[order], sizes[order]
    return holder
