"""Means and sums of rows that share a place, the same whenever they are worked out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32


@exact_float32()
def averages(rows: Tensor, into: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """Return the mean of the rows that each place holds.

    Parameters
    ----------
    rows : Tensor, (N, d)
    into : Tensor of int64, (N,)
        The place of each row, below `count`; -1 leaves a row out.
    count : int
        How many places there are.
    weights : Tensor, (N,), optional
        What each row counts, not negative. Where the rows of a place weigh nothing, all of them count the same.

    Returns
    -------
    Tensor of float32, (count, d)
        Zero where a place holds nothing.
    """
    # Rows that are left out go to a further place, so that the host need not wait to learn how many they are.
    places, order = torch.where(into < 0, count, into).sort(stable=True)
    begins = torch.searchsorted(places, torch.arange(count + 1, device=places.device))
    # Bags of rows are added up one by one, and read once; a product with a matrix of shares would take `count` times
    # as many operations.
    if weights is None:
        return F.embedding_bag(order, rows.float(), begins, mode="mean")[:count]
    counts = weights.float()[order]
    weightless = summed(counts.new_zeros(count + 1), places, counts) <= 0
    counts = counts.masked_fill(weightless[places], 1.0)
    # Shares are normalised before rows are added up: tiny weights would lose their digits otherwise.
    shares = counts / summed(counts.new_zeros(count + 1), places, counts)[places]
    return F.embedding_bag(order, rows.float(), begins, mode="sum", per_sample_weights=shares)[:count]


def summed(target: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Return a target with rows added at places that several may share, in the same order whenever it is called."""
    # Which of the two has a fixed order depends on the device.
    if rows.is_cuda:
        return target.index_put((places,), rows, accumulate=True)
    return target.index_add(0, places, rows)
