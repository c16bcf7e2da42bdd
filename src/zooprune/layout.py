"""Where the tokens of an image lie on it. Knows no model and no method, and draws nothing.

All places are shares of an image's width and height, so that an image can be drawn at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zooprune.tokens import NEWLINE

#: Rows and columns of tiles, from the number of tiles and the width and height of the image.
Grid = Callable[[int, int, int], tuple[int, int]]
#: Left, top, right and bottom, as shares of the image's width and height; outside of [0, 1] where there is padding.
Box = tuple[float, float, float, float]
IMAGE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class View:
    """A raster of tokens that covers an image.

    Parameters
    ----------
    label : str
        What the raster shows: "whole image", "2 x 3 tiles"; empty if it is the image's only view.
    tokens : Tensor of int64, (rows, columns)
        The number of the token in each cell, -1 where there is none.
    box : Box
        Where the raster lies.
    tiles : tuple of int
        Rows and columns of tiles.
    tiles_box : Box
        Where the tiles lie, with their padding.
    """

    label: str
    tokens: Tensor
    box: Box = IMAGE
    tiles: tuple[int, int] = (1, 1)
    tiles_box: Box = IMAGE

    def token_at(self, width: int, height: int) -> np.ndarray:
        """Return which token shows each pixel of an image of this size, (height, width); -1 where no token does."""
        left, top, right, bottom = self.box
        rows, columns = self.tokens.shape
        down, across = _cells(height, top, bottom, rows), _cells(width, left, right, columns)
        # Cells before the first and behind the last one are empty.
        framed = np.pad(self.tokens.numpy(), 1, constant_values=-1)
        return framed[np.ix_(down + 1, across + 1)]

    def borders(self, width: int, height: int) -> tuple[list[int], list[int]]:
        """Return between which columns and rows of pixels one tile ends and the next begins."""
        left, top, right, bottom = self.tiles_box
        rows, columns = self.tiles
        across = [round((left + (right - left) * number / columns) * width) for number in range(1, columns)]
        down = [round((top + (bottom - top) * number / rows) * height) for number in range(1, rows)]
        return [x for x in across if 0 < x < width], [y for y in down if 0 < y < height]


def only_view(positions: Tensor) -> View | None:
    """Return the view of an image that is one tile; None where tokens are of several tiles or have no places."""
    shows = (positions[:, 2] != NEWLINE).nonzero()[:, 0]
    if len(positions[shows, :2].unique(dim=0)) != 1:
        return None
    return View("", _raster(positions[shows, 2], positions[shows, 3], shows))


@dataclass(frozen=True)
class Layout:
    """How the tiles of an image lie on it, where one of them is the whole image in small.

    Parameters
    ----------
    whole : int
        The number of the tile that shows the whole image. The other tiles are in reading order.
    grid : tuple of int or Grid
        Rows and columns of the other tiles.
    tiles_box : Box
        Where the other tiles lie, with their padding.
    tokens_box : Box
        Where their tokens lie: a model may leave out rows and columns at the edges.
    whole_box : Box
        Where the tile of the whole image lies, with its padding.
    """

    whole: int
    grid: tuple[int, int] | Grid
    tiles_box: Box = IMAGE
    tokens_box: Box = IMAGE
    whole_box: Box = IMAGE

    def views(self, positions: Tensor, width: int, height: int) -> tuple[View, ...]:
        """Return the view of the whole image, and that of the tiles if there are others.

        Parameters
        ----------
        positions : Tensor of int64, (N, 4)
            Frame, tile, row and column of each token.
        width, height : int
            Of the image as the processor was given it.
        """
        tile, row, column = positions[:, 1:].unbind(1)
        small = tile == self.whole
        inside, others = (among.nonzero()[:, 0] for among in (small, ~small))
        raster = _raster(row[inside], column[inside], inside)
        if not len(others):
            return (View("", raster, self.whole_box),)
        number = tile - (tile > self.whole).long()
        tiles = int(number[others].max()) + 1
        rows, columns = self.grid(tiles, width, height) if callable(self.grid) else self.grid
        high, wide = (int(place[others].max()) + 1 for place in (row, column))
        # Only the order counts: the model leaves out padding, and interpolated tokens are further apart.
        below, beside = (
            torch.unique(place[others], return_inverse=True)[1]
            for place in (number // columns * high + row, number % columns * wide + column)
        )
        label = f"{rows} x {columns} tiles" if rows * columns > 1 else "1 tile"
        return (
            View("whole image", raster, self.whole_box),
            View(label, _raster(below, beside, others), self.tokens_box, (rows, columns), self.tiles_box),
        )


def _raster(rows: Tensor, columns: Tensor, numbers: Tensor) -> Tensor:
    """Return the numbers of tokens, laid out by row and column."""
    raster = torch.full((int(rows.max()) + 1, int(columns.max()) + 1), -1)
    raster[rows, columns] = numbers
    return raster


def _cells(length: int, begin: float, end: float, count: int) -> np.ndarray:
    """Return in which of `count` cells each of `length` pixels lies; -1 before the first, `count` behind the last."""
    places = ((np.arange(length) + 0.5) / length - begin) / (end - begin) * count
    return np.floor(places).astype(np.int64).clip(-1, count)
