"""Keep what depends on a module's weights alone for as long as they stay the same.

Threads that ask for the same thing wait until the first of them has made it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from zooprune.sensitivity.fingerprint import fingerprint

_T = TypeVar("_T")


class _Known:
    """What is known of a module's weights as they were at one look."""

    def __init__(self, looks_like: Any) -> None:
        self.looks_like = looks_like
        self.values: dict[Any, Any] = {}
        # One build may ask for another.
        self.lock = threading.RLock()


#: Guards the dictionaries, never a build.
_guard = threading.Lock()
_kept: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()
_holders: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_looked_at: ContextVar[dict[nn.Module, _Known] | None] = ContextVar("zooprune_looked_at")


def cached(module: nn.Module, key: Any, build: Callable[[], _T]) -> _T:
    """Return what `build` gives, once per module as long as its weights stay the same.

    What is built must not hold the module, which would then never be freed.
    """
    known = _known(module)
    with known.lock:
        if key not in known.values:
            # What is kept may be read later outside of the caller's inference mode.
            with torch.inference_mode(False), torch.no_grad():
                known.values[key] = build()
        value: _T = known.values[key]
    return value


def already(module: nn.Module, key: Any) -> Any:
    """Return what was built under a key, or None if nothing was."""
    return _known(module).values.get(key)


@contextmanager
def unchanged() -> Iterator[None]:
    """Look at the weights of every module at most once inside the block, in which they must stay as they are."""
    if _looked_at.get(None) is not None:
        yield
        return
    token = _looked_at.set({})
    try:
        yield
    finally:
        _looked_at.reset(token)


def hold(model: nn.Module) -> None:
    """Count one more user of a model, for whom everything that is kept of it stays."""
    with _guard:
        _holders[model] = _holders.get(model, 0) + 1


def release(model: nn.Module) -> None:
    """Count one user less; after the last one, `forget` the model."""
    with _guard:
        left = _holders.pop(model, 1) - 1
        if left > 0:
            _holders[model] = left
    if left <= 0:
        forget(model)


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """Keep what is worked out about a model for the whole block, however many sessions open and close in it."""
    hold(model)
    try:
        yield
    finally:
        release(model)


def forget(model: nn.Module) -> None:
    """Give back all memory kept for a module, for parts of it, and for modules made of its parts.

    Calls under way finish with what they have. The next call builds again what it needs.
    """
    mine = set(model.modules())
    with _guard:
        for module in list(_kept):
            if not mine.isdisjoint(module.modules()):
                del _kept[module]


def _known(module: nn.Module) -> _Known:
    looked_at = _looked_at.get(None)
    if looked_at is None:
        return _look(module)
    if module not in looked_at:
        looked_at[module] = _look(module)
    return looked_at[module]


def _look(module: nn.Module) -> _Known:
    """Return what is known of the weights as they are now."""
    looks_like = fingerprint(module)
    with _guard:
        known = _kept.get(module)
        if known is None or known.looks_like != looks_like:
            known = _kept[module] = _Known(looks_like)
    return known
