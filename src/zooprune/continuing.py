"""Go on from the cache of a pruned prompt, as chats do.

The cache holds fewer tokens than the conversation has ids, so that whoever reads the two side by side, as `generate`
does, would read old ids again. Here is what tells which ids a cache holds. Knows no model and no method.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zooprune.compaction import Prompt

if TYPE_CHECKING:
    from zooprune.decoder.cuts import Thinned


@dataclass(frozen=True)
class Conversation:
    """What a cache holds of a conversation; all tensors are on the CPU.

    Parameters
    ----------
    ids : Tensor of int64, (B, L)
        The uncut prompts.
    prompt : Prompt
        What became of them.
    after : Tensor of int64, (B, T)
        The ids that came after them and are in the cache too.
    thinned : Thinned, optional
        What became of the prompts inside the language model, of which layers of the cache then hold different numbers
        of tokens.
    """

    ids: Tensor
    prompt: Prompt
    after: Tensor
    thinned: Thinned | None = None

    def goes_on(self, input_ids: Tensor, attention_mask: Tensor | None) -> Prompt:
        """Return a longer conversation as the cache sees it, the part that is in the cache included.

        Parameters
        ----------
        input_ids : Tensor of int64, (B, M)
            All of the conversation so far, uncut.
        attention_mask : Tensor, (B, M), optional

        Raises
        ------
        ValueError
            If it does not begin with what the cache holds, or nothing is new.
        """
        given = input_ids.cpu()
        held = torch.cat([self.ids, self.after], dim=1)
        if len(given) != len(held):
            raise ValueError(
                f"the cache holds {len(held)} conversations, but input_ids has {len(given)} rows; "
                "pass the rows that generate returned"
            )
        if given.shape[1] <= held.shape[1] or not torch.equal(given[:, : held.shape[1]], held):
            raise ValueError(
                "input_ids does not go on from what the cache holds; append new ids to the sequences that "
                "generate returned, or leave the cache out and pass the images again"
            )
        width = self.ids.shape[1]
        rest = given[:, width:]
        mask = torch.ones_like(rest) if attention_mask is None else attention_mask.cpu()[:, width:].long()
        positions = self.prompt.position_ids
        further = positions[..., -1:] + mask.cumsum(1)
        return Prompt(
            torch.cat([self.prompt.input_ids, rest], dim=1),
            torch.cat([self.prompt.attention_mask, mask], dim=1),
            torch.cat([positions, further], dim=-1),
            torch.cat([self.prompt.source, torch.arange(width, given.shape[1]).expand_as(rest)], dim=1),
            self.prompt.mass,
        )

    def grown(self, sequences: Tensor, length: int) -> Conversation:
        """Return what a cache holds after an answer.

        Parameters
        ----------
        sequences : Tensor of int64, (B * n, M)
            All of the conversation, uncut, n answers to each prompt.
        length : int
            Tokens in the cache.
        """
        copies = len(sequences) // len(self.ids)
        width = self.ids.shape[1]
        held = width + length - self.prompt.input_ids.shape[1]
        return Conversation(
            self.ids.repeat_interleave(copies, 0),
            self.prompt.repeated(copies),
            sequences[:, width:held].cpu(),
            None if self.thinned is None else self.thinned.repeated(copies),
        )


#: Why nobody can go on from the cache of a beam search.
BEAMS = "it is that of a beam search, whose rows are no conversations; start without a cache"
#: Why `generate` cannot go on from a cache that the caller filled.
BY_HAND = "it was filled by calling the model by hand; go on by hand inside the session"


class _OfPrunedPrompt:
    """Lets nobody add to a cache but `generate` of a session, which knows what it holds."""

    conversation: Conversation | str

    def update(self, *args: Any, **kwargs: Any) -> Any:
        if not _known.get():
            raise ValueError(
                "the cache holds a pruned prompt, so the model cannot count from it; "
                "go on with generate() inside `with prune(...)`, or start without a cache"
            )
        return super().update(*args, **kwargs)  # type: ignore[misc]


_known: ContextVar[bool] = ContextVar("zooprune_cache_known", default=False)


@contextmanager
def adding() -> Iterator[None]:
    """Let the block add to caches of pruned prompts."""
    token = _known.set(True)
    try:
        yield
    finally:
        _known.reset(token)


def allow_adding(allowed: bool) -> None:
    """Do what `adding` does where a forward pass has no block to put it in: from one hook to another."""
    _known.set(allowed)


def remember(cache: Any, conversation: Conversation | str) -> None:
    """Note what a cache holds, or why nobody can go on from it.

    From then on the cache raises a ValueError when something is added outside of a session.
    """
    if not isinstance(cache, _OfPrunedPrompt):
        cache.__class__ = _guarded(type(cache))  # type: ignore[arg-type]
    cache.conversation = conversation


def recall(cache: Any) -> Conversation | None:
    """Return what a cache holds, None if it is not of a pruned prompt; a ValueError if nobody can go on from it."""
    if not isinstance(cache, _OfPrunedPrompt):
        return None
    if isinstance(cache.conversation, str):
        raise ValueError(f"this cache cannot be continued: {cache.conversation}")
    return cache.conversation


@cache
def _guarded(kind: Any) -> type:
    return type(f"{kind.__name__}OfPrunedPrompt", (_OfPrunedPrompt, kind), {})
