"""Greedy selection by worth and by distance to what is already kept."""

from __future__ import annotations

import importlib.util
from functools import cache
from operator import index
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import all_finite, exact_float32

Fusion = Literal["product", "sum"]

#: Tokens whose cosines to all others are worked out in one go, at least and at most: enough for products at full
#: speed, and few enough that most of them are picked.
_BLOCKS = 16, 64
#: Cosines are worked out to some 1e-7, so what is nearer than this to one is taken for one.
_SAME = 1e-6
#: The most that all cosines at once may take on a GPU, in bytes; beyond it they are worked out step by step.
_LARGEST_GRAM = 2**30


def rescale(weights: Tensor) -> Tensor:
    """Bring weights to [0, 1] over the tokens that are not excluded.

    Parameters
    ----------
    weights : Tensor, (..., N)
        -inf marks a token that must not be chosen; it stays -inf.

    Returns
    -------
    Tensor of float32, (..., N)
        (w - min) / (max - min + 1e-8), or all ones where every weight is the same.

    Raises
    ------
    ValueError
        If a weight is NaN or +inf.
    """
    weights = weights.float()
    if bool((weights.isnan() | (weights == torch.inf)).any()):
        raise ValueError("weights contain NaN or +inf; use finite numbers, or -inf to exclude a token")
    return _rescaled(weights)


def _rescaled(weights: Tensor) -> Tensor:
    excluded = weights == -torch.inf
    low = weights.masked_fill(excluded, torch.inf).amin(-1, keepdim=True)
    high = weights.amax(-1, keepdim=True)
    scaled = torch.where(low == high, 1.0, (weights - low) / (high - low + 1e-8))
    return scaled.masked_fill(excluded, -torch.inf)


def greedy_diverse(embeddings: Tensor, weights: Tensor, keep: int, *, fusion: Fusion = "product") -> Tensor:
    """Pick tokens that are both worth keeping and unlike each other (ZOO-Prune, Eq. 6-7 and Algorithm 1).

    The first pick has the highest weight. Every further one has the highest w * (1 - c), or w + (1 - c) for the
    paper's sum ablation, with w the rescaled weight and c the largest cosine to a token already picked.

    On a CPU, cosines are worked out for a block of likely picks at a time. On a CUDA device where Triton is installed
    they are worked out for all pairs, as long as those fit into 1 GiB, and one kernel makes all picks; everywhere else
    they are worked out for one pick at a time. The host waits once, to check the arguments.

    Parameters
    ----------
    embeddings : Tensor, (N, d) or (B, N, d)
        Compared by cosine in float32. A zero row has cosine 0 to everything.
    weights : Tensor, (N,) or (B, N)
        What each token is worth, on any scale: `rescale` is applied first, which leaves weights that already are
        rescaled as they are. -inf excludes a token.
    keep : int
        How many to pick; from N on every token that is not excluded is picked.
    fusion : {"product", "sum"}

    Returns
    -------
    Tensor of int64, (keep,) or (B, keep)
        Indices in the order picked, on the device of the embeddings; fewer where exclusions leave fewer. Ties go to
        the lowest index. Tokens whose cosine is within 1e-6 of one are taken for copies of each other.

    Raises
    ------
    TypeError
        If `keep` is not an integer.
    ValueError
        If shapes disagree, `keep` is not positive, `fusion` is neither, every token is excluded, the rows of a batch
        leave different numbers below `keep`, an embedding is NaN or infinite, or a weight is NaN or +inf.
    """
    return picks_and_cosines(embeddings, weights, keep, fusion=fusion)[0]


@torch.no_grad()
@exact_float32()
def picks_and_cosines(
    embeddings: Tensor, weights: Tensor, keep: int, *, fusion: Fusion = "product", first: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Pick as `greedy_diverse` does, and return the cosines that it has worked out on the way.

    Parameters
    ----------
    embeddings, weights, keep, fusion
        As for `greedy_diverse`, and so are the errors.
    first : Tensor of int64, () or (B,), optional
        The first pick, which must not be excluded, on the device of the embeddings. By default it has the highest
        weight.

    Returns
    -------
    picked : Tensor of int64, (keep,) or (B, keep)
    cosines : Tensor of float32, (keep, N) or (B, keep, N)
        Of each pick with all tokens, in the order picked.
    """
    if embeddings.ndim not in (2, 3) or weights.shape != embeddings.shape[:-1] or embeddings.numel() == 0:
        shapes = f"{tuple(embeddings.shape)} and {tuple(weights.shape)}"
        raise ValueError(f"embeddings (N, d) and weights (N,) disagree or are empty: {shapes}")
    if index(keep) < 1:
        raise ValueError(f"keep={keep} must be at least 1")
    if fusion not in get_args(Fusion):
        raise ValueError(f"fusion={fusion!r} is not one of {', '.join(get_args(Fusion))}")
    weights = weights.to(embeddings.device, torch.float32)
    keep = min(keep, _open_to_choice(embeddings, weights, keep))
    alone = embeddings.ndim == 2
    unit = F.normalize(embeddings.float(), dim=-1)
    worth = _rescaled(weights)
    opening = worth if first is None else worth.scatter(-1, first[..., None], torch.inf)
    if alone:
        unit, worth, opening = unit[None], worth[None], opening[None]
    if unit.device.type == "cpu":
        images = [_by_blocks(*image, keep, fusion) for image in zip(unit, worth, opening, strict=True)]
        picked, cosines = (torch.stack(parts) for parts in zip(*images, strict=True))
    elif unit.is_cuda and _has_triton() and unit.shape[0] * unit.shape[1] ** 2 * 4 <= _LARGEST_GRAM:
        from zooprune.kernels.greedy import greedy_picks

        gram = unit @ unit.mT
        picked = greedy_picks(gram, worth, opening, keep, product=fusion == "product")
        cosines = gram.gather(1, picked[..., None].expand(-1, -1, gram.shape[-1]))
    else:
        picked, cosines = _step_by_step(unit, worth, opening, keep, fusion)
    return (picked[0], cosines[0]) if alone else (picked, cosines)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _open_to_choice(embeddings: Tensor, weights: Tensor, keep: int) -> int:
    """Return how many tokens of every image may be picked; what is wrong with the values is read in one go."""
    finite = all_finite(embeddings)
    refused = (weights.isnan() | (weights == torch.inf)).any()
    allowed = (weights > -torch.inf).sum(-1).view(-1)
    sound, wrong, *counts = torch.cat([torch.stack([finite, refused]), allowed]).tolist()
    if not sound:
        raise ValueError("embeddings contain NaN or infinity; check the image, or run the model in bfloat16 or float32")
    if wrong:
        raise ValueError("weights contain NaN or +inf; use finite numbers, or -inf to exclude a token")
    if min(counts) == 0:
        raise ValueError("every token is excluded; leave at least one weight above -inf")
    if min(counts) < keep and len(set(counts)) > 1:
        raise ValueError(f"the images leave {min(counts)} to {max(counts)} tokens for keep={keep}; select one by one")
    return int(min(counts))


def _gain(worth: Tensor, cosine: Tensor, fusion: Fusion) -> Tensor:
    """Return what tokens are worth beside one that is kept; their score is the least of these over all kept ones."""
    distance = 1 - cosine
    # Copies are at no distance, whatever rounding says; each way of multiplying rounds otherwise.
    distance = distance.where(distance >= _SAME, 0.0)
    return worth * distance if fusion == "product" else worth + distance


def _step_by_step(unit: Tensor, worth: Tensor, opening: Tensor, keep: int, fusion: Fusion) -> tuple[Tensor, Tensor]:
    """Pick with one product per step: (B, N, d) and twice (B, N) -> (B, keep) and (B, keep, N).

    The token of the highest `opening` is the first pick.
    """
    images = torch.arange(len(unit), device=unit.device)
    picked = torch.empty(len(unit), keep, dtype=torch.int64, device=unit.device)
    cosines = unit.new_empty(len(unit), keep, unit.shape[1])
    closed = worth == -torch.inf
    usable = worth.masked_fill(closed, 0)
    score, least = opening, torch.full_like(worth, torch.inf)
    for place in range(keep):
        # An index that stays a tensor: reading it would make the host wait for the device at every step.
        best = score.argmax(-1)
        picked[:, place] = best
        closed[images, best] = True
        cosines[:, place] = cosine = (unit @ unit[images, best, :, None])[..., 0]
        least = torch.minimum(least, _gain(usable, cosine, fusion))
        score = least.masked_fill(closed, -torch.inf)
    return picked, cosines


def _by_blocks(unit: Tensor, worth: Tensor, opening: Tensor, keep: int, fusion: Fusion) -> tuple[Tensor, Tensor]:
    """Pick for one image as `_step_by_step` does, working out cosines for a block of tokens at a time.

    A matrix product is many times faster than as many products with one token, so the tokens that lead at present are
    taken together: most are picked sooner or later. What is known of tokens that may be picked never takes more than
    twice the memory of the embeddings.
    """
    total, width = unit.shape
    least, most = _BLOCKS
    block = min(max(least, min(keep // 2, most)), width, total)
    usable = worth.masked_fill(worth == -torch.inf, 0)
    picked = torch.empty(keep, dtype=torch.int64)
    cosines = unit.new_empty(keep, total)
    known: dict[int, tuple[Tensor, Tensor]] = {}
    unknown = torch.zeros(total)
    score = opening
    for place in range(keep):
        best = int(score.argmax())
        picked[place] = best
        if best not in known:
            if len(known) + block > width:
                known.clear()
                unknown.zero_()
            hopes = score + unknown
            hopes[best] = torch.inf
            likely = hopes.topk(block).indices
            cosine = unit[likely] @ unit.T
            gains = _gain(usable, cosine, fusion)
            known.update(zip(likely.tolist(), zip(cosine, gains, strict=True), strict=True))
            unknown[likely] = -torch.inf
        cosines[place], gain = known[best]
        if place == 0:
            score = gain.masked_fill(worth == -torch.inf, -torch.inf)
        else:
            # Tokens that are excluded or picked stay where they are, at minus infinity.
            torch.minimum(score, gain, out=score)
        score[best] = -torch.inf
    return picked, cosines
