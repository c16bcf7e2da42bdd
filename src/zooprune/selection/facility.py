"""Greedy selection of tokens that cover all others, or other things (facility location)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.selection.arguments import check_rows

#: Similarities are worked out to some 1e-7, so a gain smaller than this is none.
NO_GAIN = 1e-6
#: Tokens whose gains are worked out in one go, where only the most promising ones are looked at.
_BLOCK = 32


def coverage_gains(similarity: Tensor, covered: Tensor, weights: Tensor, scratch: Tensor) -> Tensor:
    """Return by how much picking each token would raise the coverage.

    Parameters
    ----------
    similarity : Tensor of float32, (N, M)
        How far each of N tokens covers each of M things.
    covered : Tensor of float32, (M,)
        How far each thing is covered by the tokens picked so far.
    weights : Tensor of float32, (M,)
        What the coverage of each thing counts.
    scratch : Tensor of float32, (N, M)
        Overwritten, because to take new memory at every step costs more than the arithmetic.

    Returns
    -------
    Tensor of float32, (N,)
    """
    torch.sub(similarity, covered, out=scratch)
    return torch.threshold_(scratch, NO_GAIN, 0.0) @ weights


def coverage_lost(similarity: Tensor, covered: Tensor, now: Tensor) -> Tensor:
    """Return by how much less picking each token would raise the coverage, once things are covered further.

    The work grows with the number of things whose coverage changed, which is small after the first picks.

    Parameters
    ----------
    similarity : Tensor of float32, (M, N)
        How far each of M things is covered by each of N tokens.
    covered, now : Tensor of float32, (M,)
        How far each thing was covered and is covered; infinity takes a thing out of the count.

    Returns
    -------
    Tensor of float64, (N,)
        In float64, so that a gain ends at zero when all its losses have been subtracted.
    """
    changed = (now > covered).nonzero()[:, 0]
    rows = similarity[changed]
    before = torch.threshold_(rows - covered[changed, None], NO_GAIN, 0.0)
    after = torch.threshold_(rows.sub_(now[changed, None]), NO_GAIN, 0.0)
    return before.sum(0, dtype=torch.float64) - after.sum(0, dtype=torch.float64)


@torch.no_grad()
@exact_float32()
def greedy_coverage(
    similarity: Tensor,
    keep: int,
    *,
    weights: Tensor,
    worth: Tensor | None = None,
    bonus: Tensor | None = None,
    tie: Tensor | float = 0.0,
) -> Tensor:
    """Pick the tokens that raise the coverage of given things most, one by one.

    A thing is covered as far as the picked token that covers it best does. Every pick has the largest sum, over all
    things, of what it adds to their coverage. Without worth and bonus, the coverage of what is picked is at least
    1 - 1/e of the best that so many tokens can reach.

    Source of the bound: Nemhauser, Wolsey and Fisher, "An analysis of approximations for maximizing submodular set
    functions", Mathematical Programming 14, 1978.

    What picking a token gains never grows. On a CPU, gains are therefore worked out anew only for tokens that might
    still have the largest one; on other devices for all tokens, so that the host need not wait.

    Parameters
    ----------
    similarity : Tensor, (N, M)
        How far each of N tokens covers each of M things, at most 1.
    keep : int
        How many to pick; from N on all are picked.
    weights : Tensor, (M,)
        What the coverage of each thing counts, not negative.
    worth : Tensor, (N,), optional
        What the gain of picking each token is multiplied by, not negative; 1 by default.
    bonus : Tensor, (N,), optional
        Added to what picking each token gains.
    tie : Tensor or float
        Gains that differ by less are taken for the same, as are those within 1e-6 of each other in proportion.

    Returns
    -------
    Tensor of int64, (keep,)
        Indices in the order picked, on the device of the similarities. Ties go to the lowest index.
    """
    similarity, weights = similarity.float(), weights.float()
    scratch = torch.empty_like(similarity)
    covered = torch.zeros_like(weights)
    gains = coverage_gains(similarity, covered, weights, scratch)
    worth = torch.ones_like(gains) if worth is None else worth.float()
    bonus = torch.zeros_like(gains) if bonus is None else bonus.float()
    keep = min(keep, len(gains))
    picked = torch.empty(keep, dtype=torch.int64, device=gains.device)
    closed = torch.zeros(len(gains), dtype=torch.bool, device=gains.device)
    fresh = torch.ones_like(closed)

    def values() -> tuple[Tensor, Tensor]:
        """Return what picking each token is worth, and the highest value that it ties with."""
        value, highest = gains * worth + bonus, (gains + NO_GAIN * gains + tie) * worth + bonus
        return value.masked_fill(closed, -torch.inf), highest.masked_fill(closed, -torch.inf)

    for place in range(keep):
        value, highest = values()
        while gains.is_cpu:
            # Gains of an earlier step are never too low.
            stale = highest.masked_fill(fresh, -torch.inf)
            if stale.max() < value.masked_fill(~fresh, -torch.inf).max():
                break
            rows = stale.topk(min(_BLOCK, len(stale))).indices
            gains[rows] = coverage_gains(similarity[rows], covered, weights, scratch[: len(rows)])
            fresh[rows] = True
            value, highest = values()
        # Two tokens that are nearest to each other gain exactly the same, which rounding must not decide. An index
        # that stays a tensor: reading it would make the host wait for the device at every step.
        best = (highest >= value.max()).int().argmax()
        picked[place] = best
        closed[best] = True
        covered = torch.maximum(covered, similarity[best])
        if gains.is_cpu:
            fresh = closed.clone()
        else:
            gains = coverage_gains(similarity, covered, weights, scratch)
    return picked


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
        of the largest weight or, in proportion, within 1e-6 of each other are taken for the same.

    Raises
    ------
    ValueError
        If there is no embedding, an embedding is NaN or infinite, or `keep` is not positive.
    """
    check_rows(embeddings, keep)
    unit = F.normalize(embeddings.float(), dim=-1)
    similarity = (unit @ unit.T + 1) / 2
    counts = torch.ones_like(unit[:, 0]) if weights is None else weights.float()
    return greedy_coverage(similarity, keep, weights=counts, bonus=bonus, tie=NO_GAIN * counts.max())
