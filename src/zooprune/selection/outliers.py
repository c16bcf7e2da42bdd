"""Outliers among numbers."""

from __future__ import annotations

import torch
from torch import Tensor

#: The factor from which on a number is an outlier: the threshold of the original paper and of common libraries.
_FACTOR = 1.5


@torch.no_grad()
def local_outliers(values: Tensor, neighbours: int) -> Tensor:
    """Return which numbers are outliers by their local outlier factor.

    The factor compares how densely the nearest numbers lie with how densely the number itself lies; above 1.5 it marks
    an outlier.

    Source: Breunig, Kriegel, Ng and Sander, "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000.

    Parameters
    ----------
    values : Tensor, (N,)
    neighbours : int
        How many of the nearest numbers are looked at; fewer where there are not so many.

    Returns
    -------
    Tensor of bool, (N,)
    """
    count = len(values)
    near = min(neighbours, count - 1)
    if near < 1:
        return torch.zeros(count, dtype=torch.bool, device=values.device)
    # In float64, because scores that differ in their last digits still have neighbours.
    ordered, rank = values.double().sort(stable=True)
    steps = torch.cat([torch.arange(-near, 0), torch.arange(1, near + 1)]).to(values.device)
    place = torch.arange(count, device=values.device)[:, None] + steps
    outside = (place < 0) | (place >= count)
    away = (ordered[place.clamp(0, count - 1)] - ordered[:, None]).abs().masked_fill(outside, torch.inf)
    away, nearest = (part[:, :near] for part in away.sort(dim=1, stable=True))
    nearest = place.gather(1, nearest)
    # A number that is close is as far as its own neighbours are, which evens out what lies inside a cluster.
    reach = torch.maximum(away, away[:, -1][nearest])
    density = 1 / (reach.mean(1) + 1e-10)
    factor = density[nearest].mean(1) / density
    return torch.zeros(count, dtype=torch.bool, device=values.device).index_put((rank,), factor > _FACTOR)
