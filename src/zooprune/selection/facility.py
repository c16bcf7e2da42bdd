"""Greedy selection of tokens that stand for all others (facility location)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.selection.arguments import check_rows

#: Similarities are worked out to some 1e-7, so a gain smaller than this is none.
_NOTHING = 1e-6


def coverage_gains(similarity: Tensor, covered: Tensor, weights: Tensor, scratch: Tensor) -> Tensor:
    """Return by how much picking each token would raise the coverage of all tokens.

    Parameters
    ----------
    similarity : Tensor of float32, (N, N)
        Symmetric.
    covered : Tensor of float32, (N,)
        How similar each token is to the most similar token picked so far.
    weights : Tensor of float32, (N,)
        What the coverage of each token counts.
    scratch : Tensor of float32, (N, N)
        Overwritten, because to take new memory at every step costs more than the arithmetic.

    Returns
    -------
    Tensor of float32, (N,)
    """
    torch.sub(similarity, covered, out=scratch)
    return torch.threshold_(scratch, _NOTHING, 0.0) @ weights


@torch.no_grad()
@exact_float32()
def facility_location(
    embeddings: Tensor, keep: int, *, weights: Tensor | None = None, bonus: Tensor | None = None
) -> Tensor:
    """Pick the tokens that raise the coverage of all tokens most, one by one.

    A token is covered as far as it is similar to the most similar picked token, by the cosine brought to [0, 1]. Every
    pick has the largest sum, over all tokens, of what it adds to their coverage.

    Parameters
    ----------
    embeddings : Tensor, (N, d)
        Compared by cosine in float32.
    keep : int
        How many to pick; from N on all are picked.
    weights : Tensor, (N,), optional
        What the coverage of each token counts, not negative; 1 by default.
    bonus : Tensor, (N,), optional
        Added to what picking each token gains.

    Returns
    -------
    Tensor of int64, (keep,)
        Indices in the order picked, on the device of the embeddings. Ties go to the lowest index; gains within 1e-6
        of the largest weight are taken for the same.

    Raises
    ------
    ValueError
        If there is no embedding, an embedding is NaN or infinite, or `keep` is not positive.
    """
    check_rows(embeddings, keep)
    unit = F.normalize(embeddings.float(), dim=-1)
    similarity = (unit @ unit.T + 1) / 2
    scratch = torch.empty_like(similarity)
    counts = torch.ones_like(unit[:, 0]) if weights is None else weights.float()
    keep = min(keep, len(unit))
    picked = torch.empty(keep, dtype=torch.int64, device=unit.device)
    closed = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
    covered, tie = torch.zeros_like(counts), _NOTHING * counts.max()
    for place in range(keep):
        gains = coverage_gains(similarity, covered, counts, scratch)
        if bonus is not None:
            gains = gains + bonus
        gains = gains.masked_fill(closed, -torch.inf)
        # Two tokens that are nearest to each other gain exactly the same, which rounding must not decide. An index
        # that stays a tensor: reading it would make the host wait for the device at every step.
        best = (gains >= gains.max() - tie).int().argmax()
        picked[place] = best
        closed[best] = True
        covered = torch.maximum(covered, similarity[best])
    return picked
