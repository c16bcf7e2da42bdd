"""A lattice of tokens, which ignores what they show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zooprune.pruners.base import Pruner
from zooprune.selection.lattice import spread
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class Grid(Pruner):
    """Keep tokens that are spread evenly over the image.

    The kept tokens form a lattice of evenly spaced rows and, in each of these, evenly spaced columns. Rows are about as
    far apart as columns: 64 of 24 x 24 tokens are every third token of every third row. Where the budget is not a
    product of rows and columns, these rows differ by one token at most. Each tile of each frame gets a share of the
    budget in proportion to its tokens, and has a lattice of its own. With fewer kept tokens than frames, the frames
    that keep a token are evenly spaced as well. The choice depends on positions alone.

    For models without a family of their own, rows and columns are unknown; there, tokens are evenly spaced in their
    order.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.

    Notes
    -----
        row m of n    = ⌊(2m + 1) H / 2n⌋,  n = round(H √(k / N))
        column m of c = ⌊(2m + 1) W / 2c⌋

        H, W: rows and columns of the image; N = H W; k: tokens to keep; m: from 0
        n: rows with kept tokens, at least 1; c: kept tokens in such a row
    """

    name: ClassVar[str] = "grid"
    source: ClassVar[str] = "baseline"

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return ones: no token is worth more than another."""
        return torch.ones(len(tokens), dtype=torch.float32, device=tokens.features.device)

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Spread the budget over the positions."""
        return spread(tokens.positions, keep)
