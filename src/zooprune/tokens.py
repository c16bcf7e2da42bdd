"""The nouns of the library: what a pruner may look at, what it returns, and how many tokens it may keep.

Nothing here knows models, prompts or methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real

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
        # Integral and Real take NumPy's numbers as well.
        if isinstance(keep, bool) or not isinstance(keep, Real):
            raise TypeError(f"keep must be an int (tokens) or a float (share), not {type(keep).__name__}")
        if isinstance(keep, Integral):
            if keep < 1:
                raise ValueError(f"keep={keep} leaves no visual token; give at least 1")
        elif not 0 < keep <= 1:
            raise ValueError(f"keep={keep} is not a share in (0, 1]; give an int for a number of tokens")

    def count(self, total: int) -> int:
        """Return how many of `total` tokens stay: never fewer than one, never more than there are."""
        if isinstance(self.keep, Integral):
            return min(int(self.keep), total)
        # Halves go up whatever their parity, unlike Python's round().
        return min(max(1, math.floor(float(self.keep) * total + 0.5)), total)


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
    signals : mapping of str to Tensor, (N, ...)
        What else is known of each token, by name. "first_layer" is the output of the projector's first layer, where
        the family keeps it. All others are there only when the method asks for them; see `zooprune.signals`.
    context : mapping of str to Tensor
        What is known of the image or its prompt as a whole, such as "question"; only when the method asks for it.

    Raises
    ------
    ValueError
        If the shapes disagree or there is no token.
    """

    features: Tensor
    embeddings: Tensor
    projector: Callable[[Tensor], Tensor]
    positions: Tensor
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    context: Mapping[str, Tensor] = field(default_factory=dict)

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
        for name, signal in self.signals.items():
            if len(signal) != total:
                raise ValueError(f"{total} features need {total} rows of {name}, got {len(signal)}")

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Tensor) -> VisualTokens:
        """Return some of the tokens, as one image."""
        signals = {name: signal[rows] for name, signal in self.signals.items()}
        return VisualTokens(
            self.features[rows], self.embeddings[rows], self.projector, self.positions[rows], signals, self.context
        )


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
    merged : Tensor, (k, d_text), optional
        What the language model reads in place of the kept tokens' own embeddings, for methods that merge tokens.
    into : Tensor of int64, (total,), optional
        For each token the place in `index` of the kept token that holds it: its own place for a kept token, -1 for a
        token that is dropped without trace. Needed with `merged`.
    cosines : Tensor of float32, (k, total), optional
        Of each kept token's embedding with those of all tokens, where the choice has worked them out.

    Raises
    ------
    ValueError
        If the index is not ascending, or the other tensors do not fit it.
    """

    index: Tensor
    total: int
    scores: Tensor | None = None
    merged: Tensor | None = None
    into: Tensor | None = None
    cosines: Tensor | None = None

    def __post_init__(self) -> None:
        index = self.index
        if index.ndim != 1 or index.dtype != torch.int64 or len(index) == 0:
            raise ValueError(f"index must be a non-empty 1-D int64 tensor, got {index.dtype} {tuple(index.shape)}")
        ascending = bool((index[1:] > index[:-1]).all())
        if not ascending or int(index[0]) < 0 or int(index[-1]) >= self.total:
            raise ValueError(f"index must be ascending, unique and inside [0, {self.total})")
        if self.merged is not None and (self.into is None or len(self.merged) != len(index)):
            raise ValueError(f"merged needs {len(index)} rows, one for each kept token, and into")
        if self.into is not None:
            into = self.into
            if into.shape != (self.total,) or into.dtype != torch.int64:
                raise ValueError(f"into must be int64 ({self.total},), got {into.dtype} {tuple(into.shape)}")
            own = torch.equal(into[index.to(into.device)].cpu(), torch.arange(len(index)))
            if not own or not bool(((into >= -1) & (into < len(index))).all()):
                raise ValueError("into must name a kept token's own place, another kept token's place or -1")

    @classmethod
    def of_picks(cls, picked: Tensor, total: int, cosines: Tensor) -> Selection:
        """Return the selection of tokens in any order, (k,), whose cosines with all tokens are known, (k, total)."""
        index, order = picked.sort()
        # Read once here, so that nothing that looks at the index later has to wait for the device.
        return cls(index.cpu(), total, cosines=cosines[order])

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

    @cached_property
    def mass(self) -> Tensor:
        """Tensor of int64, (k,): how many tokens each kept token holds, itself included."""
        if self.into is None:
            return torch.ones_like(self.index)
        return self.into[self.into >= 0].bincount(minlength=len(self.index)).to(self.index.device)

    def cpu(self) -> Selection:
        """Return it on the CPU and without merged rows and cosines, as reports keep it."""
        scores, into = (None if value is None else value.cpu() for value in (self.scores, self.into))
        return Selection(self.index.cpu(), self.total, scores, None, into)
