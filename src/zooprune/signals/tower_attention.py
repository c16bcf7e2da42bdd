"""The attention that patches receive in the vision tower."""

from __future__ import annotations

from dataclasses import dataclass

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

    @exact_float32()
    def patches(self, seen: Attention, *, class_token: bool) -> Tensor:
        """Return the attention received, float32."""
        calls = zip(seen.queries, seen.keys, seen.masks, seen.scalings, strict=True)
        # Towers that take windows or images one by one call their attention once for each.
        received = torch.cat([_received(*call, class_token) for call in calls], dim=1)
        return received[:, int(class_token) :, None]


def _received(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, class_token: bool) -> Tensor:
    """Return (B, N), the class token included."""
    asking = query[:, :, :1] if class_token else query
    received = torch.zeros(len(key), key.shape[2], dtype=torch.float32, device=key.device)
    # Several heads of queries may share one of keys.
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).float().mT
    real = torch.ones_like(received) if mask is None else _seen(mask).expand_as(received)
    for start in range(0, asking.shape[2], _CHUNK):
        scores = asking[:, :, start : start + _CHUNK].float() @ keys * scaling
        if mask is not None:
            rows = mask[..., start : start + _CHUNK, :]
            scores = scores.masked_fill(~rows, -torch.inf) if rows.dtype == torch.bool else scores + rows.float()
        given = scores.softmax(-1).mean(1)
        received += (given * real[:, start : start + given.shape[1], None]).sum(1)
    return received / real[:, : asking.shape[2]].sum(1, keepdim=True)


def _seen(mask: Tensor) -> Tensor:
    """Return 1 for each key that any query may see and 0 for padding, (B, N)."""
    allowed = mask if mask.dtype == torch.bool else mask == 0
    return allowed.any(-2)[:, 0].float()
