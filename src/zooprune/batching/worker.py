"""A loaded model that answers batches: one row per question, whether it can be answered or not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from zooprune.answering import generate
from zooprune.data.examples import Example
from zooprune.generation import Session
from zooprune.loading import load_model
from zooprune.plan import Plan
from zooprune.prompting import build_inputs

#: Questions by their number in the input, from 0.
Batch = Mapping[int, Example]


@dataclass(frozen=True)
class Row:
    """What became of a question; a row of the output.

    Parameters
    ----------
    id, question : str
    images : list of str or None
        Their names; None for an image without one.
    reply : str, optional
        None if the row failed.
    kept_tokens, total_tokens : int, optional
        Visual tokens that the language model read, and all that there were. None if the row failed.
    error : str, optional
        Why the row failed, in one sentence.
    seconds : float, optional
        The row's share of the time that its batch took, from loading the images to the replies. None if no worker
        survived it.
    """

    id: str
    question: str
    images: list[str | None]
    reply: str | None
    kept_tokens: int | None
    total_tokens: int | None
    error: str | None
    seconds: float | None


class Worker:
    """A model under pruning, loaded and ready.

    Parameters
    ----------
    plan : Plan
        The model, and how it is pruned.
    max_new_tokens : int
        Length of a reply at most.
    dtype, device : str
        As in `zooprune.loading.load_model`.

    Raises
    ------
    ValueError
        If the model cannot be loaded or pruned like this.
    """

    def __init__(self, plan: Plan, *, max_new_tokens: int = 64, dtype: str = "auto", device: str = "auto") -> None:
        self._model: Any
        self._processor: Any
        self._model, self._processor = load_model(plan.model, dtype=dtype, device=device)
        self._max_new_tokens = max_new_tokens
        self._session = Session(self._model, plan)

    def close(self) -> None:
        """Give the model its own `generate` back."""
        self._session.close()

    def answer(self, batch: Batch) -> dict[int, Row]:
        """Return a row for every question of a batch.

        A question that cannot be answered does not touch the others: if a batch fails, its questions are asked one by
        one.

        Raises
        ------
        RuntimeError
            If the device is broken, so that no further question could be answered.
        """
        began = time.perf_counter()
        images: dict[int, list[Image.Image]] = {}
        replies: dict[int, _Reply] = {}
        for number, example in batch.items():
            try:
                images[number] = [load() for load in example.images]
            except Exception as error:
                replies[number] = _Reply(error=_sentence(error))
        replies |= self._ask(batch, images)
        seconds = (time.perf_counter() - began) / len(batch)
        return {
            number: Row(
                example.id, example.question, list(example.names), replies[number].text,
                replies[number].kept, replies[number].total, replies[number].error, seconds,
            )
            for number, example in batch.items()
        }  # fmt: skip

    def _ask(self, batch: Batch, images: Mapping[int, list[Image.Image]]) -> dict[int, _Reply]:
        if not images:
            return {}
        try:
            return self._generate(batch, images)
        except Exception as error:
            failed = _sentence(error)
        # Outside of the except block, where the error no longer holds the tensors of the call.
        _check_device(self._model.device)
        if len(images) == 1:
            return {number: _Reply(error=failed) for number in images}
        return {number: reply for one in images for number, reply in self._ask(batch, {one: images[one]}).items()}

    def _generate(self, batch: Batch, images: Mapping[int, list[Image.Image]]) -> dict[int, _Reply]:
        inputs = build_inputs(self._processor, list(images.values()), [batch[number].question for number in images])
        inputs = inputs.to(self._model.device, self._model.dtype)
        self._session.reports.clear()
        texts, _ = generate(self._model, self._processor, inputs, max_new_tokens=self._max_new_tokens)
        (report,) = self._session.reports
        return {
            number: _Reply(text.strip(), *report.in_row(row))
            for row, (number, text) in enumerate(zip(images, texts, strict=True))
        }


@dataclass(frozen=True)
class _Reply:
    text: str | None = None
    kept: int | None = None
    total: int | None = None
    error: str | None = None


def _check_device(device: torch.device) -> None:
    """Raise if a GPU can do nothing any more, which is no row's fault; else free what the failed call held."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def _sentence(error: Exception) -> str:
    """Return why a row failed."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the device has too little memory for this question; scale its images down or keep fewer tokens"
    message = " ".join(str(error).split())
    if isinstance(error, ValueError) and message:
        return message
    return f"the model failed at this question ({type(error).__name__}: {message[:300] or 'no message'})"
