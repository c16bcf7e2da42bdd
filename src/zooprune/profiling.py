"""What pruning costs and saves: stage timings, tokens, FLOPs and KV-cache bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Timings:
    """Seconds spent per named stage.

    On a GPU a stage is bracketed by events, which are only waited for when the figures are read, so that
    measuring does not make the host wait.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

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


#: Text models whose feed-forward network has two matrices; all others are taken to be gated, with three.
UNGATED = frozenset({"gpt_neox", "nemotron", "phi", "starcoder2"})


def prefill_flops(config: PreTrainedConfig, tokens: int) -> int:
    """Return the floating-point operations of reading a prompt with a dense decoder; a multiply-add counts two.

    With N tokens, L layers, width d, feed-forward width f, h heads of d_h, of which g have keys and values, and a
    vocabulary of V:  2 (L (N (2 d h d_h + 2 d g d_h + 3 d f) + 2 N^2 h d_h) + d V),  2 d f for the models in `UNGATED`.
    Attention counts all pairs of tokens, masked ones included; the output head counts for the last token alone;
    norms, activations and softmax do not count.

    Parameters
    ----------
    config : PreTrainedConfig
        The text model's configuration.
    tokens : int
        Prompt length, visual tokens included.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or width // heads
    projections = 2 * width * heads * head + 2 * width * shared * head
    feed_forward = (2 if config.model_type in UNGATED else 3) * width * config.intermediate_size
    attention = 2 * tokens * tokens * heads * head
    layers = config.num_hidden_layers * (tokens * (projections + feed_forward) + attention)
    return 2 * (layers + width * config.vocab_size)


def kv_cache_bytes(config: PreTrainedConfig, tokens: int, dtype: torch.dtype) -> int:
    """Return the bytes that the keys and values of `tokens` tokens take in the cache, over all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head * tokens * dtype.itemsize
