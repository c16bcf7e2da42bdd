"""What generate() calls while it runs: they keep the cut prompt from showing, and tell the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from zooprune.profiling import Timings


@dataclass(frozen=True)
class WholePrompt:
    """Puts the caller's prompts back in place of the cut ones, which are `width` ids long."""

    prompts: Tensor
    width: int

    def __call__(self, ids: Tensor) -> Tensor:
        """Return (B * n, L + t) for (B * n, width + t): every prompt has n beams or samples."""
        prompts = self.prompts.repeat_interleave(len(ids) // len(self.prompts), dim=0)
        return torch.cat([prompts, ids[:, self.width :]], dim=1)


class WholeProcessor(LogitsProcessor):
    """Shows a logits processor the caller's prompt."""

    def __init__(self, processor: Callable[[Tensor, Tensor], Tensor], whole: WholePrompt) -> None:
        self.processor, self.whole = processor, whole

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the processed scores."""
        return self.processor(self.whole(input_ids), scores)


class WholeCriterion(StoppingCriteria):
    """Shows a stopping criterion the caller's prompt."""

    def __init__(self, criterion: Callable[..., Tensor], whole: WholePrompt) -> None:
        self.criterion, self.whole = criterion, whole

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Return which rows are done."""
        return self.criterion(self.whole(input_ids), scores, **kwargs)


class WholeStreamer(BaseStreamer):
    """Shows a streamer the caller's prompt; it comes first."""

    def __init__(self, streamer: BaseStreamer, whole: WholePrompt) -> None:
        self.streamer = streamer
        self.prompts: Tensor | None = whole.prompts

    def put(self, value: Tensor) -> None:
        """Pass on new ids, the prompt's own in place of the first."""
        if self.prompts is not None:
            value, self.prompts = self.prompts.cpu(), None
        self.streamer.put(value)

    def end(self) -> None:
        """Pass on that generation is over."""
        self.streamer.end()


class FirstToken(StoppingCriteria):
    """Tells prefill from decode: it is asked after every token and never stops anything."""

    def __init__(self, device: torch.device, timings: Timings) -> None:
        self.device, self.timings = device, timings
        self._marks = [self._now()]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Return that no row is done."""
        if len(self._marks) == 1:
            self._marks.append(self._now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def finish(self) -> None:
        """Note the end and file the times under prefill and decode."""
        self._marks.append(self._now())
        for name, start, end in zip(("prefill", "decode"), self._marks, self._marks[1:], strict=False):
            if isinstance(start, float):
                self.timings.add(name, end - start)
            else:
                self.timings.add_events(name, start, end)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
