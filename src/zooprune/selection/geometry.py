"""The mean that tokens share: cosines without it, and how far each token is from it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.selection.greedy import rescale


def centred(embeddings: Tensor) -> Tensor:
    """Return embeddings without their mean, float32, (N, d)."""
    return embeddings.float() - embeddings.float().mean(0)


@torch.no_grad()
@exact_float32()
def distinctiveness(embeddings: Tensor) -> Tensor:
    """Return how unlike all others each token is: minus its mean cosine to them, brought to [0, 1].

    Source: Wen, Lee and Choi, "Centering before Pruning", arXiv 2608.30263, Eq. 5.

    Parameters
    ----------
    embeddings : Tensor, (N, d)

    Returns
    -------
    Tensor of float32, (N,)
        All ones where every token is as unlike the others.
    """
    unit = F.normalize(embeddings.float(), dim=-1)
    to_others = unit @ unit.sum(0) - unit.square().sum(-1)
    return rescale(-to_others / max(1, len(unit) - 1))
