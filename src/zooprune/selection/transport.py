"""Optimal transport between two sets of tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zooprune.precision import all_finite, exact_float32


@torch.no_grad()
@exact_float32()
def sinkhorn(cost: Tensor, *, temperature: float = 0.1, iterations: int = 100) -> Tensor:
    """Return the transport plan of least cost between two uniform distributions, made smooth by entropy.

    The plan minimises the sum of plan times cost, minus the temperature times the plan's entropy. Rows and columns are
    scaled in turn, in the log domain, so that no temperature is too low for float32.

    Source: Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS 2013.

    Parameters
    ----------
    cost : Tensor, (M, N)
        What it costs to move from each source to each target.
    temperature : float
    iterations : int
        How often rows and columns are scaled.

    Returns
    -------
    Tensor of float32, (M, N)
        Columns sum to 1 / N; rows sum to 1 / M as far as the iterations have come.

    Raises
    ------
    ValueError
        If the cost is not (M, N), is empty or holds NaN or infinity, or an option is not positive.
    """
    if cost.ndim != 2 or cost.numel() == 0:
        raise ValueError(f"the cost must be (M, N) and not empty, got {tuple(cost.shape)}")
    if not 0 < temperature < float("inf") or iterations < 1:
        raise ValueError(f"temperature={temperature} and iterations={iterations} must be positive")
    if not bool(all_finite(cost)):
        raise ValueError("the cost holds NaN or infinity; check the embeddings")
    kernel = -cost.float() / temperature
    sources, targets = cost.shape
    rows, columns = kernel.new_zeros(sources, 1), kernel.new_zeros(1, targets)
    for _ in range(iterations):
        rows = -math.log(sources) - (kernel + columns).logsumexp(1, keepdim=True)
        columns = -math.log(targets) - (kernel + rows).logsumexp(0, keepdim=True)
    return (kernel + rows + columns).exp()
