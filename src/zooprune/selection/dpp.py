"""Greedy selection of a diverse set by determinants (MAP inference of a determinantal point process)."""

from __future__ import annotations

from operator import index

import torch
from torch import Tensor

from zooprune.precision import all_finite, exact_float32

#: Variance left, as a share of what an item began with, below which it is taken for a copy of picked ones.
_SPENT = 1e-6


@torch.no_grad()
@exact_float32()
def greedy_map(kernel: Tensor, keep: int) -> Tensor:
    """Pick items whose submatrix of a kernel has a large determinant, one by one.

    Each pick has the largest variance left given the items picked before it, which grows the determinant most. The
    Cholesky factor is extended by a row a pick, so that all picks cost O(keep^2 N).

    Source: Chen, Zhang and Zhou, "Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation
    Diversity", NeurIPS 2018, Algorithm 1.

    Parameters
    ----------
    kernel : Tensor, (N, N)
        Symmetric positive semi-definite.
    keep : int
        How many to pick; from N on all are picked.

    Returns
    -------
    Tensor of int64, (keep,)
        Indices in the order picked, on the kernel's device. Ties go to the lowest index, and so do all picks once
        nothing is left that picked items do not already span.

    Raises
    ------
    ValueError
        If the kernel is not square or holds NaN or infinity, or `keep` is not positive.
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.numel() == 0:
        raise ValueError(f"the kernel must be (N, N), got {tuple(kernel.shape)}")
    if index(keep) < 1:
        raise ValueError(f"keep={keep} must be at least 1")
    kernel = kernel.float()
    if not bool(all_finite(kernel)):
        raise ValueError("the kernel holds NaN or infinity; check the embeddings")
    keep = min(keep, len(kernel))
    variance = kernel.diagonal().clamp_min(0)
    spent = _SPENT * variance
    factor = kernel.new_zeros(keep, len(kernel))
    picked = torch.empty(keep, dtype=torch.int64, device=kernel.device)
    for place in range(keep):
        # An index that stays a tensor: reading it would make the host wait for the device at every step.
        best = variance.argmax()
        picked[place] = best
        left, before = variance[best], factor[:place]
        row = (kernel[best] - before[:, best] @ before) / left.sqrt()
        # A copy of what is picked tells nothing about the others.
        factor[place] = row = torch.where(left > 0, row, 0.0)
        variance = variance - row.square()
        variance = variance.where((variance > spent) | (variance == -torch.inf), 0.0)
        variance[best] = -torch.inf
    return picked
