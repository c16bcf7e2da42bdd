"""Let a model reply: the one place where prompts go in and texts come out, pruned or not."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zooprune.generation import Session
from zooprune.loading import load_model
from zooprune.policy import Dropped, Newlines, Policy, Positions, Scope
from zooprune.pruners import UNPRUNED, Pruner, get_pruner
from zooprune.reports import Report

#: Length of a reply at most, where a task does not say.
MAX_NEW_TOKENS = 1024


def generate(model: Any, processor: Any, inputs: Mapping[str, Any], **options: Any) -> tuple[tuple[str, ...], Tensor]:
    """Return a model's replies, as it is pruned at the moment.

    Parameters
    ----------
    model, processor
    inputs : mapping
        The model's inputs for a batch.
    **options
        Options of `generate`; greedy, unless they say otherwise.

    Returns
    -------
    texts : tuple of str
        Without special tokens.
    new : Tensor of int64, (batch, new tokens)
    """
    with torch.no_grad():
        output = model.generate(**inputs, **{"do_sample": False} | options)
    new = output[:, inputs["input_ids"].shape[1] :]
    return tuple(processor.batch_decode(new, skip_special_tokens=True)), new


@dataclass(frozen=True)
class Answered:
    """What a model replied to a batch under one method, and what that took.

    Parameters
    ----------
    texts : tuple of str
        Without surrounding blanks and special tokens.
    report : Report
        What the session reported.
    seconds : float
        From the call of `generate` to its return.
    """

    texts: tuple[str, ...]
    report: Report
    seconds: float


def answer(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    pruner: Pruner,
    policy: Policy = Policy(),  # noqa: B008, it is frozen
    **options: Any,
) -> Answered:
    """Answer a batch, pruned by `pruner`.

    Parameters
    ----------
    model, processor
    inputs : mapping
        The model's inputs for a batch, with images.
    pruner : Pruner
    policy : Policy
    **options
        As for `generate`.
    """
    with Session(model, pruner, policy) as session:
        _wait(model)
        began = time.perf_counter()
        texts, _ = generate(model, processor, inputs, **options)
        _wait(model)
        seconds = time.perf_counter() - began
    return Answered(tuple(text.strip() for text in texts), session.reports[-1], seconds)


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


@dataclass(frozen=True)
class Replies:
    """What a model answered to a batch.

    Parameters
    ----------
    texts : tuple of str
        Without surrounding blanks and special tokens.
    new_tokens : tuple of int
        Length of each reply.
    visual_tokens, kept_tokens : int
        Over the batch, before pruning and after, where a layer of the language model reads as many on average. Zero
        for the unpruned model, which nobody counts.
    """

    texts: tuple[str, ...]
    new_tokens: tuple[int, ...]
    visual_tokens: int = 0
    kept_tokens: int = 0


class Answerer:
    """A model that answers conversations, pruned by one method until it is closed.

    Parameters
    ----------
    pretrained : str
        "bundled", a folder, or an id on the Hugging Face hub; see `zooprune.loading.load_model`.
    method : str
        One of `zooprune.list_pruners`, or "none".
    keep : int or float
        Tokens or share to keep, as in `zooprune.ZooPrune`. Left out for "none".
    positions, scope, newlines, dropped : str
        As in `zooprune.prune`.
    dtype, device : str
        As in `zooprune.loading.load_model`.
    **options
        Further fields of the method, such as `seed`.

    Raises
    ------
    ValueError, TypeError
        If the model, the method or an option is not valid, or the processor has no chat template.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        method: str = "zoo",
        keep: int | float | None = None,
        positions: Positions = "auto",
        scope: Scope = "image",
        newlines: Newlines = "drop",
        dropped: Dropped = "discard",
        dtype: str = "auto",
        device: str = "auto",
        **options: Any,
    ) -> None:
        pruner = _pruner(method, keep, options)
        model: Any
        processor: Any
        model, processor = load_model(pretrained, dtype=dtype, device=device)
        if processor.chat_template is None:
            raise ValueError(f"the processor of {pretrained} has no chat template; save one with it")
        # Prompts of a batch must end together.
        processor.tokenizer.padding_side = "left"
        self.model, self.processor = model, processor
        self._session = None
        if pruner is not None:
            self._session = Session(model, pruner, Policy(positions, scope, newlines, dropped))

    def close(self) -> None:
        """Give the model its own `generate` back."""
        if self._session is not None:
            self._session.close()

    def answer(
        self, conversations: Sequence[Sequence[Mapping[str, Any]]], *, until: Sequence[str] = (), **options: Any
    ) -> Replies:
        """Answer a batch.

        Parameters
        ----------
        conversations : sequence of conversations
            Messages as `processor.apply_chat_template` takes them: role, and content in parts of type "image" or
            "text", images as PIL images or paths.
        until : sequence of str
            A reply ends before the first of them.
        **options
            Options of `generate`; greedy, and `MAX_NEW_TOKENS` long at most, unless they say otherwise.
        """
        inputs = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device, self.model.dtype)
        if self._session is not None:
            self._session.reports.clear()
        texts, new = generate(self.model, self.processor, inputs, **{"max_new_tokens": MAX_NEW_TOKENS} | options)
        texts = tuple(_before_stop(text, until).strip() for text in texts)
        lengths = tuple((new != self.processor.tokenizer.pad_token_id).sum(1).tolist())
        reports = [] if self._session is None else self._session.reports
        return Replies(
            texts, lengths, sum(report.total for report in reports), round(sum(report.average for report in reports))
        )


def _pruner(method: str, keep: int | float | None, options: Mapping[str, Any]) -> Pruner | None:
    if method == UNPRUNED:
        if keep is not None or options:
            unused = [*(["keep"] if keep is not None else []), *options]
            raise ValueError(f"method {UNPRUNED} prunes nothing; leave out {', '.join(unused)}")
        return None
    if keep is None:
        raise ValueError(f"how much shall {method} keep? give keep=64 (tokens) or keep=0.25 (a share)")
    return get_pruner(method, keep=keep, **options)


def _before_stop(text: str, until: Sequence[str]) -> str:
    return text[: min([len(text), *(text.find(stop) for stop in until if stop in text)])]
