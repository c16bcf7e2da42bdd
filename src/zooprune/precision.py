"""Full float32 for the arithmetic that decides which tokens stay, and only finite values in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

#: The reduced matmul modes belong to the process, so threads inside a block are counted: the last one to leave sets
#: them as they were.
_guard = threading.Lock()
_inside = 0
_before: dict[int, tuple[Any, Any]] = {}


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep autocast and the reduced matmul modes (TF32, bfloat16) out of a block; also usable as a decorator.

    Either may be on around a caller's ``generate``, and both leave fewer correct digits than separate one token's
    score from the next. What was set before is set again when no thread is inside such a block any more.
    """
    accelerator = torch.accelerator.current_accelerator()
    kinds = {"cpu"} if accelerator is None else {"cpu", accelerator.type}
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        _enter()
        stack.callback(_leave)
        yield


def _enter() -> None:
    global _inside
    # A torch that knows no precision per backend has the one switch of CUDA only.
    name, exact = ("fp32_precision", "ieee") if hasattr(torch.backends, "fp32_precision") else ("allow_tf32", False)
    with _guard:
        for place, backend in enumerate((torch.backends.cuda, torch.backends.mkldnn)):
            switch = getattr(backend, "matmul", None)
            # Looked at by every thread that enters, in case one outside has set it in between.
            if switch is not None and getattr(switch, name) not in ("none", exact):
                _before[place] = switch, getattr(switch, name)
                setattr(switch, name, exact)
        _inside += 1


def _leave() -> None:
    global _inside
    name = "fp32_precision" if hasattr(torch.backends, "fp32_precision") else "allow_tf32"
    with _guard:
        _inside -= 1
        if _inside == 0:
            for switch, setting in _before.values():
                setattr(switch, name, setting)
            _before.clear()


def all_finite(values: Tensor) -> Tensor:
    """Return whether there is neither NaN nor infinity among the values, as a tensor; one pass, nothing in between."""
    if values.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=values.device)
    return torch.stack(values.aminmax()).isfinite().all()
