"""The attention that patches receive in the vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.signals.base import Attention, TowerSignal

#: Queries whose attention is worked out at once, which bounds the memory.
_CHUNK = 256


@dataclass(frozen=True)
class TowerAttention(TowerSignal):
    """The attention each patch receives, averaged over heads: (sequences, patches, 1).

    It is the class token's attention where the tower has a class token, and the mean over all patches otherwise, except
    those of padding. It is worked out from queries and keys, so that the tower keeps its own attention kernel.
    """

    kind: ClassVar[str] = "attention"

    @exact_float32()
    def patches(self, seen: Attention, *, class_token: bool) -> Tensor:
        """Return the attention received, float32."""
        return _by_patch(seen, seen.queries, seen.keys, seen.scalings, class_token, first_asks=class_token)


@dataclass(frozen=True)
class TowerReceived(TowerSignal):
    """The attention each patch receives from all tokens of the tower, averaged over heads: (sequences, patches, 1).

    It differs from `TowerAttention` where the tower has a class token: here it is the mean over all tokens, the class
    token included.
    """

    kind: ClassVar[str] = "attention"

    @exact_float32()
    def patches(self, seen: Attention, *, class_token: bool) -> Tensor:
        """Return the attention received, float32."""
        return _by_patch(seen, seen.queries, seen.keys, seen.scalings, class_token, first_asks=False)


@dataclass(frozen=True)
class TowerJointAttention(TowerSignal):
    """The attention each patch receives if all heads of the layer are a single head: (sequences, patches, 1).

    Queries and keys of all heads are put side by side, and their product is divided by the root of that width. As in
    `TowerAttention`, this is the class token's attention where the tower has a class token, and the mean over all
    patches otherwise.
    """

    kind: ClassVar[str] = "attention"

    @exact_float32()
    def patches(self, seen: Attention, *, class_token: bool) -> Tensor:
        """Return the attention received, float32."""
        keys = [_one_head(key, query.shape[1]) for query, key in zip(seen.queries, seen.keys, strict=True)]
        queries = [_one_head(query, query.shape[1]) for query in seen.queries]
        scalings = [query.shape[-1] ** -0.5 for query in queries]
        return _by_patch(seen, queries, keys, scalings, class_token, first_asks=class_token)


@dataclass(frozen=True)
class TowerContext(TowerSignal):
    """The attention each patch receives from central tokens: (sequences, patches, 1).

    Central tokens receive more than `threshold` times the mean attention of their sequence; if there is none, all
    tokens count as central. Attention is averaged over heads and over central tokens.
    """

    kind: ClassVar[str] = "attention"

    threshold: float = 1.0

    @exact_float32()
    def patches(self, seen: Attention, *, class_token: bool) -> Tensor:
        """Return the attention received, float32."""
        found = []
        for call in zip(seen.queries, seen.keys, seen.masks, seen.scalings, strict=True):
            received = _received(*call, first_asks=False)
            # A tower may pack images into a sequence: what a token may see is its image.
            image = torch.ones_like(received)[:, None] if call[2] is None else _allowed(call[2])
            mean = (image * received[:, None]).sum(-1) / image.sum(-1).clamp_min(1)
            central = (received > self.threshold * mean) & (image.amax(1) > 0)
            central = central | ((image * central[:, None]).sum(-1) == 0)
            found.append(_received(*call, first_asks=False, asked=central.float()))
        return torch.cat(found, dim=1)[:, int(class_token) :, None]


def _one_head(vectors: Tensor, heads: int) -> Tensor:
    """Return the vectors of all heads side by side, (B, 1, N, heads * d_head)."""
    return vectors.repeat_interleave(heads // vectors.shape[1], dim=1).transpose(1, 2).flatten(2)[:, None]


def _by_patch(
    seen: Attention,
    queries: list[Tensor],
    keys: list[Tensor],
    scalings: list[float],
    class_token: bool,
    *,
    first_asks: bool,
) -> Tensor:
    """Return the attention that patches receive from the first token or from all, (sequences, patches, 1)."""
    calls = zip(queries, keys, seen.masks, scalings, strict=True)
    # Towers that take windows or images one by one call their attention once for each.
    received = torch.cat([_received(*call, first_asks) for call in calls], dim=1)
    return received[:, int(class_token) :, None]


def _received(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, first_asks: bool, asked: Tensor | None = None
) -> Tensor:
    """Return the mean over the queries that may see a key, (B, N); `asked` is what each query counts, (B, N)."""
    asking = query[:, :, :1] if first_asks else query
    received = torch.zeros(len(key), key.shape[2], dtype=torch.float32, device=key.device)
    # Several heads of queries may share one of keys.
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).float().mT
    # Padding, which nobody may see, asks nothing.
    real = torch.ones_like(received) if mask is None else _allowed(mask).amax(1).expand_as(received)
    if asked is not None:
        real = real * asked
    queries = torch.zeros_like(received)
    for start in range(0, asking.shape[2], _CHUNK):
        scores = asking[:, :, start : start + _CHUNK].float() @ keys * scaling
        counts = real[:, start : start + scores.shape[2], None]
        if mask is None:
            queries += counts.sum(1)
        else:
            rows = mask[..., start : start + scores.shape[2], :]
            scores = scores.masked_fill(~rows, -torch.inf) if rows.dtype == torch.bool else scores + rows.float()
            queries += (counts * _allowed(rows)).sum(1)
        received += (scores.softmax(-1).mean(1) * counts).sum(1)
    return received / queries.clamp_min(1)


def _allowed(mask: Tensor) -> Tensor:
    """Return 1 for each key that a query may see and 0 for all others, (B, queries or 1, N)."""
    return (mask if mask.dtype == torch.bool else mask == 0)[:, 0].float()
