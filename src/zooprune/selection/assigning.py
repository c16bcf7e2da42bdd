"""Give every token to the nearest kept token."""

from __future__ import annotations

import torch
from torch import Tensor

from zooprune.precision import exact_float32


@torch.no_grad()
@exact_float32()
def nearest(
    embeddings: Tensor, index: Tensor, *, groups: Tensor | None = None, cosines: Tensor | None = None
) -> Tensor:
    """Return for each token the nearest kept token, by Euclidean distance.

    Parameters
    ----------
    embeddings : Tensor, (N, d)
        Compared in float32.
    index : Tensor of int64, (k,)
        The kept tokens, ascending.
    groups : Tensor of int64, (N,), optional
        Tokens go to kept tokens of their own group only.
    cosines : Tensor of float32, (k, N), optional
        Of each kept token with all tokens, where these are known already.

    Returns
    -------
    Tensor of int64, (N,)
        Places in `index`, on the device of the embeddings. A kept token has its own place. A token whose group has no
        kept token has -1. Ties go to the lowest place.
    """
    device = embeddings.device
    index = index.to(device)
    squares = torch.linalg.vector_norm(embeddings, dim=-1, dtype=torch.float32).square()
    if cosines is None:
        wide = embeddings.float()
        products = wide[index] @ wide.T
    else:
        lengths = squares.sqrt()
        products = cosines.to(device) * lengths[index, None] * lengths
    # The square of the distance, less what all kept tokens share for the same token.
    far = squares[index, None] - 2 * products
    if groups is not None:
        groups = groups.to(device)
        far = far.masked_fill(groups[index, None] != groups, torch.inf)
    distance, into = far.min(dim=0)
    into = into.masked_fill(distance == torch.inf, -1)
    into[index] = torch.arange(len(index), device=device)
    return into
