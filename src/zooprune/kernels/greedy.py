"""The greedy loop as one kernel: a program for every image, all picks without going back to the host."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def greedy_picks(cosine: Tensor, worth: Tensor, opening: Tensor, keep: int, *, product: bool) -> Tensor:
    """Pick tokens for every image of a batch; the tensor form of `zooprune.selection.greedy_diverse` is the reference.

    Parameters
    ----------
    cosine : Tensor of float32, (B, N, N)
        Between all tokens of an image. Only the rows of picked tokens are read, one for each pick.
    worth : Tensor of float32, (B, N)
        Rescaled; -inf excludes a token.
    opening : Tensor of float32, (B, N)
        The token for which this is highest is picked first.
    keep : int
        At most as many as every image has tokens that are not excluded.
    product : bool
        Whether worth and distance are multiplied or added.

    Returns
    -------
    Tensor of int64, (B, keep)
    """
    images, total = worth.shape
    picked = torch.empty(images, keep, dtype=torch.int64, device=worth.device)
    block = triton.next_power_of_2(total)
    warps = min(max(block // 128, 1), 32)
    _pick[(images,)](
        cosine.contiguous(), worth.contiguous(), opening.contiguous(), picked, total, keep, PRODUCT=product,
        BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return picked


@triton.jit
def _pick(cosine, worth, opening, picked, total, keep, PRODUCT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < total
    own = tl.load(worth + image * total + token, mask=inside, other=-float("inf"))
    is_open = own > -float("inf")
    usable = tl.where(is_open, own, 0.0)
    score = tl.load(opening + image * total + token, mask=inside, other=-float("inf"))
    least = tl.full((BLOCK,), float("inf"), tl.float32)
    for place in range(keep):
        best = tl.argmax(score, axis=0, tie_break_left=True)
        tl.store(picked + image * keep + place, best.to(tl.int64))
        row = tl.load(cosine + (image * total + best) * total + token, mask=inside, other=0.0)
        distance = 1.0 - row
        # Copies are at no distance, as in the tensor form.
        distance = tl.where(distance < 1e-6, 0.0, distance)
        gain = usable * distance if PRODUCT else usable + distance
        least = tl.minimum(least, gain)
        is_open = is_open & (token != best)
        score = tl.where(is_open, least, -float("inf"))
