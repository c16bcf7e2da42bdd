"""The floor any method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zooprune.projectors import Sensitivity
from zooprune.pruners.base import Pruner
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class RandomPrune(Pruner):
    """Keep tokens drawn without replacement.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    seed : int
        Seed of the draws, the same for every image, so that a batch equals its rows.
    """

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "baseline"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed={self.seed!r} must be an int of at least 0")

    def draws(self, sensitivity: Sensitivity) -> bool:
        """Return True."""
        return True

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return uniform draws in [0, 1), made on the CPU so that they are the same on every device."""
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.rand(len(tokens), generator=generator, dtype=torch.float32, device="cpu")
        return draws.to(tokens.features.device)
