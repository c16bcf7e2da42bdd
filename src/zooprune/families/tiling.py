"""Rasters of tokens, and tiles that make up one image."""

from __future__ import annotations

import math
from collections.abc import Mapping
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


def tiled_images(tiles: list[VisualTokens], slots: list[int]) -> list[Visual]:
    """Join tiles to images, numbered by tile.

    Parameters
    ----------
    tiles : list of VisualTokens
        All of one size.
    slots : list of int
        How many slots each image fills.

    Raises
    ------
    ValueError
        If an image is not a whole number of tiles, or there are more or fewer tiles than slots for them.
    """
    size = len(tiles[0])
    if any(count % size for count in slots) or sum(slots) != size * len(tiles):
        found = ", ".join(map(str, slots)) or "no"
        raise ValueError(
            f"the prompts have images of {found} placeholders, which {len(tiles)} tiles of {size} do not fill; "
            "pass the ids and pixels of the same processor call"
        )
    bounds = accumulate((count // size for count in slots), initial=0)
    return [Visual.plain(joined(tiles[start:end], axis=1)) for start, end in pairwise(bounds)]
