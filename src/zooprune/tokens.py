"""The nouns of the library: what a pruner may look at, what it returns, and how many tokens it may keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

#: Row and column of a token that shows no patch (a newline or separator the model inserts itself).
NEWLINE = -1


@dataclass(frozen=True)
class Budget:
    """How many visual tokens of an image may stay.

    Parameters
    ----------
    keep : int or float
        An int is a number of tokens per image; a float in (0, 1] is a share of them.

    Raises
    ------
    TypeError
        If `keep` is neither an int nor a float.
    ValueError
        If `keep` is not positive, not finite, or a float above 1.
    """

    keep: int | float

    def __post_init__(self) -> None:
        keep = self.keep
        if isinstance(keep, bool) or not isinstance(keep, (int, float)):
            raise TypeError(f"keep must be an int (tokens) or a float (share), not {type(keep).__name__}")
        if isinstance(keep, int) and keep < 1:
            raise ValueError(f"keep={keep} leaves no visual token; give at least 1")
        if isinstance(keep, float) and not 0 < keep <= 1:
            raise ValueError(f"keep={keep} is not a share in (0, 1]; give an int for a number of tokens")

    def count(self, total: int) -> int:
        """Return how many of `total` tokens stay: never fewer than one, never more than there are."""
        if isinstance(self.keep, int):
            return min(self.keep, total)
        # Halves go up whatever their parity, unlike Python's round().
        return min(max(1, math.floor(self.keep * total + 0.5)), total)


@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of one image, as a pruner sees them.

    Parameters
    ----------
    features : Tensor, (N, d_vision)
        The vision encoder's output, before the projector (X in the paper).
    embeddings : Tensor, (N, d_text)
        The projector's output, which the language model would read (Z in the paper).
    projector : callable, (..., d_vision) -> (..., d_text)
        The model's own projector, applied token by token.
    positions : Tensor of int64, (N, 4)
        Frame, tile, row and column of each token; row and column are `NEWLINE` where a token shows no patch.
    hidden : Tensor, (N, d_hidden), optional
        What the projector's first layer gave, where the family keeps it; nothing then has to work it out again.

    Raises
    ------
    ValueError
        If the shapes disagree or there is no token.
    """

    features: Tensor
    embeddings: Tensor
    projector: Callable[[Tensor], Tensor]
    positions: Tensor
    hidden: Tensor | None = None

    def __post_init__(self) -> None:
        total = len(self.features)
        if self.features.ndim != 2 or self.embeddings.ndim != 2 or total == 0:
            raise ValueError(
                "features and embeddings must be (N, d) with N >= 1, "
                f"got {tuple(self.features.shape)} and {tuple(self.embeddings.shape)}"
            )
        if len(self.embeddings) != total or self.positions.shape != (total, 4):
            raise ValueError(
                f"{total} features need {total} embeddings and positions of shape ({total}, 4), "
                f"got {tuple(self.embeddings.shape)} and {tuple(self.positions.shape)}"
            )
        if self.hidden is not None and len(self.hidden) != total:
            raise ValueError(f"{total} features need {total} rows of hidden, got {len(self.hidden)}")

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Tensor) -> VisualTokens:
        """Return some of the tokens, as one image."""
        hidden = None if self.hidden is None else self.hidden[rows]
        return VisualTokens(self.features[rows], self.embeddings[rows], self.projector, self.positions[rows], hidden)


@dataclass(frozen=True)
class Selection:
    """Which visual tokens of one image stay.

    Parameters
    ----------
    index : Tensor of int64, (k,)
        The kept tokens, ascending and unique.
    total : int
        How many tokens there were.
    scores : Tensor of float32, (total,), optional
        What the pruner thought of each token, for pictures; not used to cut.
    """

    index: Tensor
    total: int
    scores: Tensor | None = None

    def __post_init__(self) -> None:
        index = self.index
        if index.ndim != 1 or index.dtype != torch.int64 or len(index) == 0:
            raise ValueError(f"index must be a non-empty 1-D int64 tensor, got {index.dtype} {tuple(index.shape)}")
        ascending = bool((index[1:] > index[:-1]).all())
        if not ascending or int(index[0]) < 0 or int(index[-1]) >= self.total:
            raise ValueError(f"index must be ascending, unique and inside [0, {self.total})")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def keeps_all(self) -> bool:
        """Whether nothing was dropped."""
        return len(self.index) == self.total

    @cached_property
    def mask(self) -> Tensor:
        """Tensor of bool, (total,): True where a token stays."""
        mask = torch.zeros(self.total, dtype=torch.bool, device=self.index.device)
        mask[self.index] = True
        return mask
