"""Greedy selection of tokens that are far from all picked ones together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.selection.arguments import check_rows


@torch.no_grad()
@exact_float32()
def greedy_max_sum(embeddings: Tensor, first: Tensor, keep: int) -> Tensor:
    """Pick tokens whose cosines to the picked ones have the smallest sum, one by one (max-sum dispersion).

    Parameters
    ----------
    embeddings : Tensor, (N, d)
        Compared by cosine in float32. A zero row has cosine 0 to everything.
    first : Tensor of int64, ()
        The first pick, on the device of the embeddings.
    keep : int
        How many to pick; from N on all are picked.

    Returns
    -------
    Tensor of int64, (keep,)
        Indices in the order picked, on the device of the embeddings. Ties go to the lowest index.

    Raises
    ------
    ValueError
        If there is no embedding, an embedding is NaN or infinite, or `keep` is not positive.
    """
    check_rows(embeddings, keep)
    unit = F.normalize(embeddings.float(), dim=-1)
    keep = min(keep, len(unit))
    picked = torch.empty(keep, dtype=torch.int64, device=unit.device)
    closed = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
    sums, best = torch.zeros_like(unit[:, 0]), first
    for place in range(keep):
        picked[place] = best
        closed[best] = True
        sums = sums + unit @ unit[best]
        # An index that stays a tensor: reading it would make the host wait for the device at every step.
        best = sums.masked_fill(closed, torch.inf).argmin()
    return picked
