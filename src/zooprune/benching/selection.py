"""What it costs to pick tokens once they are scored."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from zooprune.benching.measuring import time_in_turn
from zooprune.benching.paper import plain_loop
from zooprune.selection import greedy_diverse
from zooprune.selection.greedy import _step_by_step, rescale


def rows(
    tokens: int, keep: int, *, width: int = 4096, batch: int = 1, repeats: int = 5, device: str = "cpu",
    plain: bool = True,
) -> list[dict[str, Any]]:  # fmt: skip
    """Compare ways to pick `keep` of `tokens` random embeddings.

    Parameters
    ----------
    tokens, keep, width, batch : int
    repeats : int
    device : str
    plain : bool
        Whether the loop of the released code runs too.
    """
    generator = torch.Generator().manual_seed(0)
    # A common direction, as embeddings of one image have: cosines near 0.5 and not all near 0.
    drawn = torch.randn(batch, tokens, width, generator=generator) + torch.randn(width, generator=generator)
    embeddings = drawn.to(device)
    weights = torch.rand(batch, tokens, generator=generator).to(device)

    def one_product_per_step() -> object:
        worth = rescale(weights)
        return _step_by_step(F.normalize(embeddings, dim=-1), worth, worth, keep, "product")[0]

    providers = {
        "as published": lambda: [plain_loop(*image, keep) for image in zip(embeddings, weights, strict=True)],
        "one product per step": one_product_per_step,
        "zooprune": lambda: greedy_diverse(embeddings, weights, keep),
    }
    if not plain:
        del providers["as published"]
    # Neither broadcast products nor those with a single vector are among what is counted by itself.
    flops = {
        "as published": 2 * batch * tokens * tokens * width,
        "one product per step": 2 * batch * keep * tokens * width,
    }
    return time_in_turn(
        providers, repeats=repeats, device=device, flops=flops, tokens=tokens, keep=keep, width=width, batch=batch
    )
