"""The model as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from zooprune.pruners.base import Pruner
from zooprune.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class KeepAll(Pruner):
    """Keep every token, through the same code path as the other methods, so that both are timed alike.

    Parameters
    ----------
    keep : int or float
        Has no effect: it is always 1.0.
    """

    name: ClassVar[str] = "none"
    source: ClassVar[str] = "the unpruned model"

    keep: int | float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "keep", 1.0)

    def select(self, tokens: VisualTokens, keep: int) -> Selection:
        """Return all tokens, without scores."""
        return Selection(torch.arange(keep), len(tokens))
