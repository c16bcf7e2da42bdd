"""Tokens spread evenly over an image or a video, by their positions alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def spread(positions: Tensor, keep: int) -> Tensor:
    """Return tokens that lie as evenly as rows and columns allow.

    Every tile of every frame has a share of the budget in proportion to its tokens. It is laid out as a lattice: evenly
    spaced rows, so many that rows are as far apart as the tokens in them, and in each of these rows evenly spaced
    tokens. To space some of many evenly, the many are cut into equal stretches, and the middle of each is taken.

    Parameters
    ----------
    positions : Tensor of int64, (N, 4)
        Frame, tile, row and column. Tokens without a row, whose number is negative, count as a tile of their own.
    keep : int
        How many, from 1 to N.

    Returns
    -------
    Tensor of int64, (keep,)
        On the CPU, in raster order.
    """
    places: list[list[int]] = positions.tolist()
    order = sorted(range(len(places)), key=places.__getitem__)
    tiles = _runs(order, lambda token: (*places[token][:2], places[token][2] < 0))
    chosen: list[int] = []
    for tile, share in zip(tiles, _shares([len(tile) for tile in tiles], keep), strict=True):
        if share:
            rows = _rows(_runs(tile, lambda token: places[token][2]), share)
            for row, count in zip(rows, _shares([len(row) for row in rows], share), strict=True):
                chosen += _spaced(row, count)
    return torch.tensor(chosen)


def _runs(tokens: Sequence[int], key: Callable[[int], object]) -> list[list[int]]:
    """Return the runs of tokens that have the same key."""
    return [list(run) for _, run in groupby(tokens, key)]


def _rows(rows: list[list[int]], share: int) -> list[list[int]]:
    """Return evenly spaced rows, enough for a share of their tokens."""
    total = sum(map(len, rows))
    # With a token in every square of `total / share` places, rows are a side of that square apart.
    count = min(max(1, round(len(rows) * math.sqrt(share / total))), share)
    while sum(map(len, chosen := _spaced(rows, count))) < share:
        count += 1
    return chosen


def _spaced(items: Sequence[Item], count: int) -> list[Item]:
    """Return so many of the items, evenly spaced."""
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def _shares(sizes: Sequence[int], budget: int) -> list[int]:
    """Deal out a budget in proportion to sizes, of which nobody gets more; running sums are rounded."""
    total = sum(sizes)
    ends = [(2 * end * budget + total) // (2 * total) for end in accumulate(sizes, initial=0)]
    return [end - start for start, end in pairwise(ends)]
