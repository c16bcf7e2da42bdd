"""Clusters around tokens that many others are near to, and that are far from any denser token."""

from __future__ import annotations

import torch
from torch import Tensor

from zooprune.precision import exact_float32


@torch.no_grad()
@exact_float32()
def density_peaks(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cluster tokens by their density.

    A token is dense if the tokens nearest to it are near, as many of them as there are clusters. The centres are the
    tokens of the highest product of density and distance to the nearest denser token; every other token joins the
    nearest centre. Ties go to the lowest index, and of equally dense tokens the one of lower index counts as denser.

    Source: Du, Ding and Jia, "Study on density peaks clustering based on k-nearest neighbors and principal component
    analysis", Knowledge-Based Systems 2016, as SparseVLM (arXiv 2410.04417) uses it, without the noise that it adds.

    Parameters
    ----------
    rows : Tensor, (N, d)
    count : int
        How many clusters, from 1 to N.

    Returns
    -------
    centres : Tensor of int64, (count,)
        Ascending.
    into : Tensor of int64, (N,)
        The place in `centres` of each token's centre.
    """
    rows = rows.float()
    total = len(rows)
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") / rows.shape[1] ** 0.5
    nearest = distances.topk(count, largest=False).values
    density = (-nearest.square().mean(1)).exp()
    place = torch.arange(total, device=rows.device)
    denser = (density > density[:, None]) | ((density == density[:, None]) & (place < place[:, None]))
    # Nothing is denser than the densest token, which is as far from it as any token is from another.
    apart = distances.masked_fill(~denser, torch.inf).min(1).values
    apart = torch.where(apart.isinf(), distances.max(), apart)
    centres = (density * apart).sort(descending=True, stable=True).indices[:count].sort().values
    into = distances[:, centres].argmin(1)
    return centres, into.index_put((centres,), torch.arange(count, device=rows.device))
