"""The token that is farthest from all others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.selection.arguments import check_rows

#: Tokens whose cosines are worked out in one go, which bounds the memory.
_BLOCK = 256
#: Cosines are worked out to some 1e-7, so distances that differ by less than this are taken for the same.
_SAME = 1e-6


@torch.no_grad()
@exact_float32()
def most_isolated(embeddings: Tensor, weights: Tensor) -> Tensor:
    """Return the token of largest weight times distance to the nearest other token.

    Parameters
    ----------
    embeddings : Tensor, (N, d)
        Compared by cosine in float32; the distance is 1 minus the cosine.
    weights : Tensor, (N,)
        What each token is worth, in [0, 1].

    Returns
    -------
    Tensor of int64, ()
        On the device of the embeddings. Two tokens that are nearest to each other have the same distance. Such ties go
        to the lowest index; values within 1e-6 of each other are taken for the same.

    Raises
    ------
    ValueError
        If there is no embedding, or an embedding is NaN or infinite.
    """
    check_rows(embeddings, 1)
    unit = F.normalize(embeddings.float(), dim=-1)
    likeness = torch.full_like(unit[:, 0], -1.0)
    for start in range(0, len(unit), _BLOCK):
        # Each pair is looked at once, which halves the work.
        cosines = unit[start : start + _BLOCK] @ unit[start:].T
        cosines.fill_diagonal_(-1.0)
        rows, columns = likeness[start : start + _BLOCK], likeness[start:]
        torch.maximum(columns, cosines.amax(0), out=columns)
        torch.maximum(rows, cosines.amax(1), out=rows)
    isolation = weights * (1 - likeness)
    # An index that stays a tensor: reading it would make the host wait for the device.
    return (isolation >= isolation.max() - _SAME).int().argmax()
