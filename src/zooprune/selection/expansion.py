"""Greedy growth of a set of tokens by worth and by distance to what the set holds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.selection.arguments import check_rows

#: Cosines are worked out to some 1e-7, so what is nearer than this to one is taken for one.
_SAME = 1e-6


@torch.no_grad()
@exact_float32()
def expand(embeddings: Tensor, weights: Tensor, start: Tensor, keep: int) -> Tensor:
    """Add tokens to a set until it holds `keep`, each time the token of largest w * (1 - c).

    Here w is the weight of the token, and c its largest cosine to a token of the set.

    Parameters
    ----------
    embeddings : Tensor, (N, d)
        Compared by cosine in float32. A zero row has cosine 0 to everything.
    weights : Tensor, (N,)
        What each token is worth, not negative.
    start : Tensor of int64, (m,)
        What the set begins with, on the device of the embeddings; at least one token and at most `keep`.
    keep : int
        How many tokens the set is to hold; from N on it holds all.

    Returns
    -------
    Tensor of int64, (keep,)
        The tokens of `start`, and then the others in the order they were added. Ties go to the lowest index. Tokens
        whose cosine is within 1e-6 of one are taken for copies of each other.

    Raises
    ------
    ValueError
        If there is no embedding, an embedding is NaN or infinite, `keep` is not positive, or `start` does not fit.
    """
    check_rows(embeddings, keep)
    keep = min(keep, len(embeddings))
    if not 1 <= len(start) <= keep:
        raise ValueError(f"start holds {len(start)} tokens; it must hold from 1 to keep={keep}")
    unit, worth = F.normalize(embeddings.float(), dim=-1), weights.float()
    picked = torch.cat([start, start.new_empty(keep - len(start))])
    closed = torch.zeros(len(unit), dtype=torch.bool, device=unit.device).index_fill(0, start, True)
    least = _distance(unit @ unit[start].T).amin(1)
    for place in range(len(start), keep):
        # An index that stays a tensor: reading it would make the host wait for the device at every step.
        best = (worth * least).masked_fill(closed, -torch.inf).argmax()
        picked[place] = best
        closed[best] = True
        least = torch.minimum(least, _distance(unit @ unit[best]))
    return picked


def _distance(cosine: Tensor) -> Tensor:
    """Return 1 - cosine; copies are at no distance, whatever rounding says."""
    return F.threshold(1 - cosine, _SAME, 0.0)
