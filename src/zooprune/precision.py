"""Full float32 for the arithmetic that decides which tokens stay, and only finite values in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep autocast and the reduced matmul modes (TF32, bfloat16) out of a block; also usable as a decorator.

    Either may be on around a caller's ``generate``, and both leave fewer correct digits than separate one token's
    score from the next. What was set before is set again on the way out.
    """
    accelerator = torch.accelerator.current_accelerator()
    kinds = {"cpu"} if accelerator is None else {"cpu", accelerator.type}
    # A torch that knows no precision per backend has the one switch of CUDA only.
    name, exact = ("fp32_precision", "ieee") if hasattr(torch.backends, "fp32_precision") else ("allow_tf32", False)
    switches = [getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn)]
    before = [(switch, getattr(switch, name)) for switch in switches if switch is not None]
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        for switch, setting in before:
            if setting not in ("none", exact):
                setattr(switch, name, exact)
                stack.callback(setattr, switch, name, setting)
        yield


def all_finite(values: Tensor) -> Tensor:
    """Return whether there is neither NaN nor infinity among the values, as a tensor; one pass, nothing in between."""
    if values.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=values.device)
    return torch.stack(values.aminmax()).isfinite().all()
