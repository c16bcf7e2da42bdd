"""The keys of patches in the vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zooprune.signals.base import Attention, TowerSignal


@dataclass(frozen=True)
class TowerKeys(TowerSignal):
    """The key of each patch, averaged over heads: (sequences, patches, d_head)."""

    kind: ClassVar[str] = "keys"

    def patches(self, seen: Attention, *, class_token: bool) -> Tensor:
        """Return the mean keys, float32."""
        return torch.cat([key.float().mean(1) for key in seen.keys], dim=1)[:, int(class_token) :]


@dataclass(frozen=True)
class TowerJointKeys(TowerSignal):
    """The key of each patch, those of all heads side by side: (sequences, patches, heads * d_head)."""

    kind: ClassVar[str] = "keys"

    def patches(self, seen: Attention, *, class_token: bool) -> Tensor:
        """Return the keys, float32."""
        return torch.cat([key.float().transpose(1, 2).flatten(2) for key in seen.keys], dim=1)[:, int(class_token) :]
