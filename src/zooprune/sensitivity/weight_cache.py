"""Keep what depends on a module's weights alone for as long as they stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_T = TypeVar("_T")

_kept: WeakKeyDictionary[nn.Module, tuple[Any, dict[Any, Any]]] = WeakKeyDictionary()
_looked_at: ContextVar[dict[int, dict[Any, Any]]] = ContextVar("zooprune_looked_at")


def cached(module: nn.Module, key: Any, build: Callable[[], _T]) -> _T:
    """Return what `build` gives, once per module as long as its weights stay the same.

    What is built must not hold the module, which would then never be freed.
    """
    known = _looked_at.get({}).get(id(module))
    if known is None:
        known = _look(module)
    if key not in known:
        # What is kept may be read later outside of the caller's inference mode.
        with torch.inference_mode(False), torch.no_grad():
            known[key] = build()
    value: _T = known[key]
    return value


@contextmanager
def unchanged(module: object) -> Iterator[None]:
    """Look at the weights once for the whole block, in which they must stay as they are; only modules have any."""
    looked_at = _looked_at.get({})
    if not isinstance(module, nn.Module) or id(module) in looked_at:
        yield
        return
    token = _looked_at.set({**looked_at, id(module): _look(module)})
    try:
        yield
    finally:
        _looked_at.reset(token)


def _look(module: nn.Module) -> dict[Any, Any]:
    """Return what is known of the weights as they are now."""
    fingerprint = _fingerprint([*module.parameters(), *module.buffers()])
    known = _kept.get(module)
    if known is None or known[0] != fingerprint:
        known = _kept[module] = (fingerprint, {})
    return known[1]


def _fingerprint(values: list[Tensor]) -> list[Any]:
    """Return what tells tensors from their earlier selves.

    Neither address nor version changes when ``.data`` is written to, or when a freed address is used again, hence
    the sums over the contents.
    """
    marks = [
        (value.data_ptr(), 0 if value.is_inference() else value._version, value.dtype, value.device) for value in values
    ]
    sums = [_sum_of_bits(value.detach()) for value in values]
    # Brought together on one device, so that the host waits for it once.
    return [marks, torch.stack([total.to(sums[0].device) for total in sums]).tolist() if sums else []]


def _sum_of_bits(value: Tensor) -> Tensor:
    """Return the sum of a tensor's bits as 64-bit words, modulo 2^64: as fast as memory, whatever the dtype."""
    octets = value.contiguous().view(-1).view(torch.uint8)
    if octets.storage_offset() % 8:
        octets = octets.clone()
    whole = len(octets) // 8 * 8
    return octets[:whole].view(torch.int64).sum() + octets[whole:].sum()
