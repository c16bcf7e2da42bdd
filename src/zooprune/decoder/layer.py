"""What a method sees of a decoder layer: the tokens of one prompt that the layer reads, and its queries and keys.

All is worked out only when asked for. Queries and keys come from the layer's own attention module, whatever it does to
them, by calling it on the tokens with an attention function that looks at them and attends to nothing. Knows decoder
layers; no method, no cache, no mask.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from zooprune.precision import exact_float32

#: How many rows of the attention are worked out at a time.
_ROWS = 64


@dataclass(frozen=True)
class Heads:
    """The queries and keys of one prompt in one layer.

    Parameters
    ----------
    queries : Tensor, (heads, L, d_head)
    keys : Tensor, (shared heads, L, d_head)
        Each is shared by ``heads / shared heads`` queries.
    scaling : float
        What their products are multiplied with.
    softcap : float, optional
        Bound that the scores are squeezed into, with models that have one.
    window : int, optional
        How many tokens back a query sees, itself included, in layers with a sliding window.
    visible : callable, optional
        Given the rows of queries, (q,), which rows they see, bool, (q, L), where the model says so; otherwise a query
        sees the rows up to itself.
    """

    queries: Tensor
    keys: Tensor
    scaling: float
    softcap: float | None = None
    window: int | None = None
    visible: Callable[[Tensor], Tensor] | None = None

    def probabilities(self, query: int | Tensor, among: Tensor | None = None) -> Tensor:
        """Return how a token attends to the tokens that it sees: float32, (heads, L).

        Parameters
        ----------
        query : int or Tensor of int64, (q,)
            The row of the token, or of several: (heads, q, L).
        among : Tensor of int64, (n,), optional
            The rows that the softmax is over, n instead of L; all by default.
        """
        keys = self.keys if among is None else self.keys[:, among]
        device = keys.device
        places = torch.arange(self.keys.shape[1], device=device) if among is None else among
        asked = query if isinstance(query, Tensor) else torch.arange(query, query + 1, device=device)
        queries = self.queries[:, asked].unflatten(0, (len(keys), -1)).float()
        with exact_float32():
            scores = queries.flatten(1, 2) @ keys.float().transpose(1, 2) * self.scaling
        scores = scores.unflatten(1, queries.shape[1:3])
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if self.visible is not None:
            hidden = ~self.visible(asked)[:, places]
        else:
            hidden = places > asked[:, None]
            if self.window is not None:
                hidden |= places <= asked[:, None] - self.window
        # A window may leave nothing to see.
        found = scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0.0).flatten(0, 1)
        return found if isinstance(query, Tensor) else found[:, 0]

    def attention(self, query: int | Tensor, among: Tensor | None = None) -> Tensor:
        """Return the mean of `probabilities` over the heads, and over several queries: (L,) or (n,)."""
        if not isinstance(query, Tensor):
            return self.probabilities(query, among).mean(0)
        # Some rows at a time, so that the attention is never there as a whole.
        parts = [self.probabilities(rows, among).sum(1).mean(0) for rows in query.split(_ROWS)]
        return torch.stack(parts).sum(0) / len(query)


class View:
    """What one decoder layer reads of one prompt.

    Parameters
    ----------
    module : torch.nn.Module
        The layer.
    hidden : Tensor, (L, d)
        Its input, without padding.
    tables : pair of Tensor, (..., 1, L, d_head)
        The rotary tables, cosines and sines.
    visible : callable, optional
        See `Heads`.
    """

    def __init__(
        self,
        module: nn.Module,
        hidden: Tensor,
        tables: tuple[Tensor, Tensor],
        visible: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._module, self.hidden, self._tables, self._visible = module, hidden, tables, visible

    @functools.cached_property
    def heads(self) -> Heads:
        """Queries and keys as the layer compares them, with rotary positions."""
        return self._heads(self._tables)

    @functools.cached_property
    def unrotated(self) -> Heads:
        """Queries and keys without rotary positions."""
        cosines, sines = self._tables
        # A rotation by nothing.
        return self._heads((torch.ones_like(cosines), torch.zeros_like(sines)))

    def nearness(self, queries: Tensor) -> Tensor:
        """Return what rotary positions alone make of a query and a key of ones: 1 for a token and itself, (q, L).

        Parameters
        ----------
        queries : Tensor of int64, (q,)
            The rows of the queries.
        """
        cosines, sines = (table.squeeze(-3).float() for table in self._tables)
        width = self.heads.queries.shape[-1]
        # Every pair of channels gives twice the cosine of how far it turns between the two; others do not turn.
        with exact_float32():
            turned = cosines[queries] @ cosines.T + sines[queries] @ sines.T
        return (turned + width - cosines.shape[-1]) / width

    @torch.no_grad()
    def _heads(self, tables: tuple[Tensor, Tensor]) -> Heads:
        layer: Any = self._module
        device = _device(layer, self.hidden.device)
        rows = self.hidden[None].to(device)
        # Where norms follow the attention, it reads the layer's input as it is.
        norm = getattr(layer, "input_layernorm", None)
        twin = _looking(layer.self_attn)
        twin(
            hidden_states=rows if norm is None else norm(rows),
            position_embeddings=tuple(table.to(device) for table in tables),
            attention_mask=None,
        )
        return replace(vars(twin)["heads"], visible=self._visible)


@dataclass(frozen=True)
class Passage:
    """What a module of a layer read and gave, of one prompt without padding.

    Parameters
    ----------
    read, gave : Tensor, (L, d)
    """

    read: Tensor
    gave: Tensor


@dataclass(frozen=True)
class Layer:
    """A layer in front of which tokens of one image, or of all images of a prompt, are to go.

    Parameters
    ----------
    number, depth : int
        Of the layer, from 0, and how many there are.
    stage : int
        Which of the method's stages this is, from 0.
    here : View
        What the layer would read.
    before : View
        What the layer before it has read; in front of the first layer, the same as `here`.
    visual : Tensor of int64, (n,)
        The rows of the visual tokens to choose among, ascending. Like all rows, counted in what the layers read of this
        prompt.
    text : Tensor of int64, (T,)
        The rows of the prompt's text.
    question : Tensor of int64, (Q,)
        The rows of the text behind the last image of the prompt; the last row alone if no text is there. The last is
        the last token of the prompt.
    positions : Tensor of int64, (n, 4)
        Frame, tile, row and column of the visual tokens; row and column are `zooprune.tokens.NEWLINE` for separators.
    index : Tensor of int64, (n,)
        The number of each visual token among those of its image that entered the language model.
    images : tuple of Tensor of int64, (n,)
        The rows of the visual tokens of every image of the prompt, in their order, this one's among them.
    patches : Tensor, (N, d)
        What the first layer read of the image, N tokens that entered the language model.
    words : Tensor, (Q, d)
        What the first layer read of the question.
    noted : Tensor of float32, (m, n)
        What the method has measured of the visual tokens, from the layer in front of its first stage up to this one.
    """

    number: int
    depth: int
    stage: int
    here: View
    before: View
    visual: Tensor
    text: Tensor
    question: Tensor
    positions: Tensor
    index: Tensor
    images: tuple[Tensor, ...]
    patches: Tensor
    words: Tensor
    noted: Tensor

    @property
    def entered(self) -> int:
        """How many tokens of the image entered the language model."""
        return len(self.patches)

    @property
    def last(self) -> int:
        """The row of the prompt's last token."""
        return len(self.here.hidden) - 1


_LOOKING = "zooprune-looking"


def _looking(attention: Any) -> Any:
    """Return an attention module with the same weights that notes its queries and keys and attends to nothing.

    Nobody else calls it, so that other threads go on with the module itself.
    """
    if _LOOKING not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(_LOOKING, _look)
    twin = copy.copy(attention)
    twin.config = copy.copy(attention.config)
    twin.config._attn_implementation_internal = _LOOKING
    return twin


def _look(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    vars(module)["heads"] = Heads(
        query[0].detach(), key[0].detach(), float(scaling), kwargs.get("softcap"), kwargs.get("sliding_window")
    )
    return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None


def _device(module: nn.Module, otherwise: torch.device) -> torch.device:
    """Return where a module's weights are; offloaded weights come to where the rows are."""
    first = next(module.parameters(), None)
    return otherwise if first is None or first.device.type == "meta" else first.device


def of_one_prompt(tables: Any, row: int, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rotary tables of one prompt without padding, (..., 1, n, d_head)."""

    def cut(table: Tensor) -> Tensor:
        mine = table[..., min(row, table.shape[-3] - 1), :, :]
        return mine[..., present, :].unsqueeze(-3)

    cosines, sines = tables
    return cut(cosines), cut(sines)
