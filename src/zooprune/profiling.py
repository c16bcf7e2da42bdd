"""The stopwatch: seconds per stage of one call, and what a method notes about how it worked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch


class Timings:
    """Seconds spent per named stage.

    On a GPU a stage is bracketed by events, which are only waited for when the figures are read, so that
    measuring does not make the host wait.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        #: What a method had to say about how it worked, by `note`.
        self.notes: dict[str, Any] = {}

    def add(self, name: str, seconds: float) -> None:
        """Add time measured on the host."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def add_events(self, name: str, start: torch.cuda.Event, end: torch.cuda.Event) -> None:
        """Add a pair of recorded events, read later."""
        self._events.append((name, start, end))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every stage so far."""
        for name, start, end in self._events:
            end.synchronize()
            self.add(name, start.elapsed_time(end) / 1000)
        self._events.clear()
        return dict(self._seconds)


_current: ContextVar[Timings | None] = ContextVar("zooprune_timings", default=None)


@contextmanager
def recording(timings: Timings) -> Iterator[Timings]:
    """Collect every `stage` entered inside the block into `timings`."""
    token = _current.set(timings)
    try:
        yield timings
    finally:
        _current.reset(token)


@contextmanager
def stage(name: str, device: torch.device) -> Iterator[None]:
    """Time a block under `name` if somebody is recording; otherwise do nothing."""
    timings = _current.get()
    if timings is None:
        yield
    elif device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        yield
        end.record()
        timings.add_events(name, start, end)
    else:
        began = time.perf_counter()
        yield
        timings.add(name, time.perf_counter() - began)


def note(name: str, value: Any) -> None:
    """Write down something about the work at hand if somebody is recording."""
    timings = _current.get()
    if timings is not None:
        timings.notes[name] = value
