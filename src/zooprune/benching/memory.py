"""How much memory pruning saves, in the cache and at the peak."""

from __future__ import annotations

from typing import Any

import torch

from zooprune.benching.measuring import peak_bytes
from zooprune.benching.shapes import shape_of
from zooprune.costs import kv_cache_bytes
from zooprune.environment import describe
from zooprune.generation import prune
from zooprune.pruners import ZooPrune
from zooprune.tokens import Budget


def rows(shape: str, *, budgets: tuple[int | float, ...] | None = None, device: str = "cpu") -> list[dict[str, Any]]:
    """Return the bytes of the cache after the prompt, and by how much memory rises during a request for one token.

    Parameters
    ----------
    shape : str
        A name of `zooprune.benching.shapes.SHAPES`.
    budgets : tuple of int or float, optional
        Those of the shape when left out; keeping all tokens comes first in any case.
    device : str
    """
    known = shape_of(shape)
    model: Any = known.model(device=device)
    inputs = known.inputs(device=device)
    environment, found = describe(), []
    for budget in (1.0, *(budgets or known.budgets)):
        with torch.no_grad(), prune(model, ZooPrune(keep=budget)) as session:
            model.generate(**inputs, max_new_tokens=1)
            peak = peak_bytes(lambda: model.generate(**inputs, max_new_tokens=1), torch.device(device))
            length = session.reports[-1].pruned_length
        cache = kv_cache_bytes(model.config.get_text_config(), length, model.dtype)
        found.append(
            {"shape": shape, "keep": Budget(budget).count(known.tokens), "tokens": known.tokens, "prompt": length}
            | {"kv_cache_bytes": cache, "peak_bytes": peak, "environment": environment}
        )
    return found
