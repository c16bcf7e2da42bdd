"""Greedy selection by worth and by distance to what is already kept."""

from __future__ import annotations

from operator import index
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32

Fusion = Literal["product", "sum"]


def rescale(weights: Tensor) -> Tensor:
    """Bring weights to [0, 1] over the tokens that are not excluded.

    Parameters
    ----------
    weights : Tensor, (N,)
        -inf marks a token that must not be chosen; it stays -inf.

    Returns
    -------
    Tensor of float32, (N,)
        (w - min) / (max - min + 1e-8), or all ones where every weight is the same.

    Raises
    ------
    ValueError
        If a weight is NaN or +inf.
    """
    weights = weights.float()
    allowed = weights > -torch.inf
    if bool(weights.isnan().any()) or bool((weights == torch.inf).any()):
        raise ValueError("weights contain NaN or +inf; use finite numbers, or -inf to exclude a token")
    if not bool(allowed.any()):
        return weights
    low, high = weights[allowed].min(), weights[allowed].max()
    scaled = torch.ones_like(weights) if bool(low == high) else (weights - low) / (high - low + 1e-8)
    return scaled.masked_fill(~allowed, -torch.inf)


@torch.no_grad()
@exact_float32()
def greedy_diverse(embeddings: Tensor, weights: Tensor, keep: int, *, fusion: Fusion = "product") -> Tensor:
    """Pick tokens that are both worth keeping and unlike each other (ZOO-Prune, Eq. 6-7 and Algorithm 1).

    The first pick has the highest weight. Every further one has the highest w * (1 - c), or w + (1 - c) for the
    paper's sum ablation, with w the rescaled weight and c the largest cosine to a token already picked.

    Parameters
    ----------
    embeddings : Tensor, (N, d)
        Compared by cosine in float32. A zero row has cosine 0 to everything.
    weights : Tensor, (N,)
        What each token is worth, on any scale: `rescale` is applied first, which leaves weights that already are
        rescaled as they are. -inf excludes a token.
    keep : int
        How many to pick; from N on every token that is not excluded is picked.
    fusion : {"product", "sum"}

    Returns
    -------
    Tensor of int64, (keep,)
        Indices in the order picked, on the device of the embeddings; fewer where exclusions leave fewer. Ties go to
        the lowest index.

    Raises
    ------
    TypeError
        If `keep` is not an integer.
    ValueError
        If shapes disagree, `keep` is not positive, `fusion` is neither, every token is excluded, an embedding is NaN
        or infinite, or a weight is NaN or +inf.
    """
    total = len(embeddings)
    if embeddings.ndim != 2 or weights.shape != (total,):
        raise ValueError(
            f"embeddings (N, d) and weights (N,) disagree: {tuple(embeddings.shape)} and {tuple(weights.shape)}"
        )
    if index(keep) < 1:
        raise ValueError(f"keep={keep} must be at least 1")
    if fusion not in get_args(Fusion):
        raise ValueError(f"fusion={fusion!r} is not one of {', '.join(get_args(Fusion))}")
    if not bool(embeddings.isfinite().all()):
        raise ValueError("embeddings contain NaN or infinity; check the image, or run the model in bfloat16 or float32")
    worth = rescale(weights.to(embeddings.device))
    open_to_choice = worth > -torch.inf
    keep = min(keep, int(open_to_choice.sum()))
    if keep == 0:
        raise ValueError("every token is excluded; leave at least one weight above -inf")
    unit = F.normalize(embeddings.float(), dim=-1)
    picked = torch.empty(keep, dtype=torch.int64, device=embeddings.device)
    nearest = torch.full_like(worth, -torch.inf)
    score = worth
    for place in range(keep):
        # An index that stays a tensor: reading it would make the host wait for the device at every step.
        best = score.argmax(keepdim=True)
        picked[place : place + 1] = best
        open_to_choice[best] = False
        nearest = torch.maximum(nearest, unit @ unit[best].squeeze(0))
        distance = 1 - nearest
        fused = worth * distance if fusion == "product" else worth + distance
        score = torch.where(open_to_choice, fused, -torch.inf)
    return picked
