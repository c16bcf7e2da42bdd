"""Rasters of tokens, and tiles that make up one image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

import torch
from torch import Tensor

from zooprune.layout import Grid, Layout
from zooprune.tokens import VisualTokens
from zooprune.visuals import Visual, joined


def grid_positions(rows: int, columns: int, *, frames: int = 1, tile: int = 0, device: torch.device) -> Tensor:
    """Return frame, tile, row and column of a raster of tokens, (frames * rows * columns, 4)."""
    lines = [torch.arange(length, device=device) for length in (frames, rows, columns)]
    frame, row, column = torch.cartesian_prod(*lines).unbind(-1)
    return torch.stack([frame, torch.full_like(frame, tile), row, column], dim=-1)


def square_tiles(
    features: Tensor, embeddings: Tensor, projector: Any, signals: Mapping[str, Tensor] | None = None
) -> list[VisualTokens]:
    """Return a VisualTokens for each tile of a tower whose tiles are square.

    Parameters
    ----------
    features : Tensor, (tiles * N, d_vision)
    embeddings : Tensor, (tiles, N, d_text)
    projector : callable
    signals : mapping of str to Tensor, (tiles * N, ...), optional
    """
    total = embeddings.shape[1]
    side = math.isqrt(total)
    positions = grid_positions(side, side, device=embeddings.device)
    given = {name: values.split(total) for name, values in (signals or {}).items()}
    return [
        VisualTokens(x, z, projector, positions, {name: values[tile] for name, values in given.items()})
        for tile, (x, z) in enumerate(zip(features.split(total), embeddings, strict=True))
    ]


def pooled(patches: Mapping[str, Tensor], total: int) -> dict[str, Tensor]:
    """Return signals of tokens that are each made of a square of patches: the mean over those.

    Parameters
    ----------
    patches : mapping of str to Tensor, (tiles, patches, channels)
        In raster order.
    total : int
        Tokens of a tile.

    Returns
    -------
    dict of str to Tensor, (tiles * total, channels)
    """
    side = math.isqrt(total)

    def mean(values: Tensor) -> Tensor:
        grid = values.unflatten(1, (math.isqrt(values.shape[1]), -1))
        blocks = grid.unflatten(2, (side, -1)).unflatten(1, (side, -1))
        return blocks.mean((2, 4)).flatten(0, 2)

    return {name: mean(values) for name, values in patches.items()}


def blocks(patches: Tensor, grid: Sequence[int], merge: int) -> Tensor:
    """Return the patches of each token, (tokens, merge * merge, d), from patches in raster order, (rows * columns, d).

    A last row or column that fills no block is left out.
    """
    rows, columns = grid
    whole = patches.view(rows, columns, -1)[: rows // merge * merge, : columns // merge * merge]
    return whole.unflatten(1, (-1, merge)).unflatten(0, (-1, merge)).transpose(1, 2).flatten(2, 3).flatten(0, 1)


def runs(slots: Tensor) -> list[list[range]]:
    """Return, for every prompt, the runs of slots that follow each other without a break.

    Parameters
    ----------
    slots : Tensor of bool, (B, L)
    """
    prompts = []
    for row in slots.tolist():
        stretches = [list(run) for _, run in groupby(range(len(row)), key=row.__getitem__)]
        prompts.append([range(run[0], run[-1] + 1) for run in stretches if row[run[0]]])
    return prompts


def one_id_apart(prompt: list[range]) -> list[int]:
    """Return how many slots each image of a prompt fills, where a single id stands between the tiles of an image.

    Parameters
    ----------
    prompt : list of range
        The runs of slots in it.
    """
    images: list[int] = []
    for number, run in enumerate(prompt):
        if number and run.start - prompt[number - 1].stop == 1:
            images[-1] += len(run)
        else:
            images.append(len(run))
    return images


def nearest_shape(tiles: int, width: int, height: int) -> tuple[int, int]:
    """Return the rows and columns of so many tiles whose shape is nearest to the image's.

    A processor that chooses the nearest shape among all numbers of tiles has chosen this one, if its number is known.
    """
    return min(_grids(tiles), key=lambda grid: abs(width / height - grid[1] / grid[0]))


def least_resized(side: int, tiles: int, width: int, height: int) -> tuple[int, int]:
    """Return the rows and columns of so many tiles into which the image fits with the least change of its size.

    As `nearest_shape`, for a processor that enlarges the image as little as possible, or else shrinks it as little as
    possible.

    Parameters
    ----------
    side : int
        Pixels of a tile's side.
    tiles, width, height : int
    """
    scales = {grid: min(grid[1] * side / width, grid[0] * side / height) for grid in _grids(tiles)}
    enlarging = {grid: scale for grid, scale in scales.items() if scale >= 1}
    return min(enlarging, key=enlarging.__getitem__) if enlarging else max(scales, key=scales.__getitem__)


def _grids(tiles: int) -> list[tuple[int, int]]:
    """Return all rows and columns of so many tiles, the fewest columns first."""
    return [(tiles // columns, columns) for columns in range(1, tiles + 1) if tiles % columns == 0]


def tiled_images(
    tiles: list[VisualTokens], slots: list[int], grids: Iterable[tuple[int, int] | Grid | None]
) -> list[Visual]:
    """Join tiles to images, numbered by tile.

    Parameters
    ----------
    tiles : list of VisualTokens
    slots : list of int
        How many slots each image fills.
    grids : iterable of (tuple of int, Grid or None)
        For each image the rows and columns of its tiles, to which the whole image in small comes last; None if they are
        not known.

    Raises
    ------
    ValueError
        If an image is not a whole number of tiles, or there are more or fewer tiles than slots for them.
    """
    ends = list(accumulate(map(len, tiles)))
    filled = list(accumulate(slots))
    if not set(filled) <= set(ends) or filled[-1:] != ends[-1:]:
        found = ", ".join(map(str, slots)) or "no"
        sizes = " or ".join(map(str, sorted({len(tile) for tile in tiles})))
        raise ValueError(
            f"the prompts have images of {found} placeholders, which {len(tiles)} tiles of {sizes} do not fill; "
            "pass the ids and pixels of the same processor call"
        )
    bounds = [0, *(ends.index(end) + 1 for end in filled)]
    return [
        Visual.plain(
            joined(tiles[start:end], axis=1),
            Layout(end - start - 1, grid) if end - start > 1 and grid is not None else None,
        )
        for (start, end), grid in zip(pairwise(bounds), grids, strict=False)
    ]
