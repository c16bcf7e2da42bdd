"""Rasters of tokens, and tiles that make up one image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

import torch
from torch import Tensor

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


def tiled_images(tiles: list[VisualTokens], slots: list[int]) -> list[Visual]:
    """Join tiles to images, numbered by tile.

    Parameters
    ----------
    tiles : list of VisualTokens
    slots : list of int
        How many slots each image fills.

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
    return [Visual.plain(joined(tiles[start:end], axis=1)) for start, end in pairwise(bounds)]
