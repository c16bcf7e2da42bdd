"""LLaVA-NeXT: a small view of the whole image and tiles of it, unpadded, with a newline after every row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from zooprune.families.base import Family
from zooprune.families.tiling import grid_positions
from zooprune.layout import Layout
from zooprune.signals import TowerSignal
from zooprune.tokens import VisualTokens
from zooprune.visuals import Encoded, Modality, Visual


class LlavaNext(Family):
    """``LlavaNextForConditionalGeneration``. Tile 0 is the whole image in small."""

    architectures = ("LlavaNextForConditionalGeneration",)
    title = "LLaVA-NeXT (1.6)"
    traits = ("tiles", "newlines")
    image_arguments: ClassVar[tuple[str, ...]] = (
        "pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy",
    )  # fmt: skip

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the tiles, and pack the projector's inputs the way the model packs its outputs."""
        inner = model.model
        projector = inner.multi_modal_projector
        output, seen, patches = self.forward(
            model, modality, inputs, {"projector": projector, "first layer": projector.linear_1}, signals,
            methods={"packing": (inner, "pack_image_features")},
        )  # fmt: skip
        (((packs, *args), kwargs),) = seen["packing"].calls
        counts = [len(tiles) for tiles in packs]
        # Sizes are read one by one, for which the host would have to wait for the device each time.
        args = [value.cpu() if isinstance(value, Tensor) else value for value in args]

        def packed(tiles: Tensor, newline: float) -> list[Tensor]:
            mark = torch.full_like(tiles[0, 0], newline)
            rows: list[Tensor] = inner.pack_image_features(
                list(tiles.split(counts)), *args, **{**kwargs, "image_newline": mark}
            )[0]
            return rows

        tiles = seen["projector"].read.unflatten(0, (sum(counts), -1))
        side = round(tiles.shape[1] ** 0.5)
        features = packed(tiles, 0.0)
        rows = {"first_layer": seen["first layer"].gave.unflatten(0, (sum(counts), -1))}
        given = {name: packed(values, 0.0) for name, values in (rows | patches).items()}
        sizes = torch.as_tensor(inputs["image_sizes"]).tolist()
        grids = [_grid(model.config, size) if count > 1 else (1, 1) for size, count in zip(sizes, counts, strict=True)]
        layouts = [
            _tiled(model.config, size, grid, side) if count > 1 else _squared(size)
            for size, grid, count in zip(sizes, grids, counts, strict=True)
        ]
        # Rows and columns are counted over all tiles, so that a token mixed of several lies between them.
        places = [_places(count, wide, side, tiles.device) for count, (_, wide) in zip(counts, grids, strict=True)]
        # A newline is told apart by a view that cannot be.
        positions = [
            _positions(rows, wide, side) for rows, (_, wide) in zip(packed(torch.cat(places), -1.0), grids, strict=True)
        ]
        tail = self.token_wise(projector)
        visuals = [
            unpacked(
                VisualTokens(x, z, tail, place, {name: values[number] for name, values in given.items()}),
                several=count > 1,
                layout=layout,
            )
            for number, (x, z, place, layout, count) in enumerate(
                zip(features, output.pooler_output, positions, layouts, counts, strict=True)
            )
        ]
        return Encoded(visuals, output)


def _grid(config: Any, size: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of the tiles of an image, given its height and width."""
    # Imported with the first model, not with the library.
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    rows, columns = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
    return rows, columns


def _squared(size: Sequence[int]) -> Layout:
    """Return how a single tile lies on an image: LLaVA-OneVision makes each of several images a square by padding."""
    (top, bottom), (left, right) = (_centred(length, max(size)) for length in size)
    return Layout(0, (1, 1), whole_box=(left, top, right, bottom))


def _tiled(config: Any, size: Sequence[int], grid: tuple[int, int], side: int) -> Layout:
    """Return how the tiles of an image lie on it.

    The processor makes the image as large as the tiles allow and centres it between two strips of padding. The model
    leaves out the tokens that it takes for padding.

    Parameters
    ----------
    config : PretrainedConfig
        Of the model.
    size : sequence of int
        Height and width of the image.
    grid : tuple of int
        Rows and columns of tiles.
    side : int
        Tokens in a row of a tile.
    """
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    canvas = [number * config.vision_config.image_size for number in grid]
    scale = min(full / length for full, length in zip(canvas, size, strict=True))
    (top, bottom), (left, right) = (
        _centred(math.ceil(length * scale), full) for full, length in zip(canvas, size, strict=True)
    )
    tiles_box = left, top, right, bottom
    # The model's own function leaves out tokens, here their numbers.
    high, wide = (number * side for number in grid)
    stay = unpad_image(torch.arange(high * wide).view(1, high, wide), size)[0]
    if not stay.numel():
        return Layout(0, grid, tiles_box)
    down, across = (bottom - top) / high, (right - left) / wide
    row, column = divmod(int(stay[0, 0]), wide)
    left, right = (left + (column + further) * across for further in (0, stay.shape[1]))
    top, bottom = (top + (row + further) * down for further in (0, stay.shape[0]))
    return Layout(0, grid, tiles_box, (left, top, right, bottom))


def _centred(image: int, canvas: int) -> tuple[float, float]:
    """Return where a canvas begins and ends on which an image is centred, as shares of the image."""
    image = min(image, canvas)
    before = (canvas - image) // 2
    return -before / image, (canvas - before) / image


def _places(count: int, columns: int, side: int, device: torch.device) -> Tensor:
    """Return view, row and column of each token of the tiles of an image, (count, side * side, 3).

    View 0 is the whole image in small. In view 1, the tiles, rows and columns are counted over all of them.
    """
    tiles = [grid_positions(side, side, tile=tile, device=device) for tile in range(count)]
    tile, row, column = torch.stack(tiles)[..., 1:].unbind(-1)
    number = (tile - 1).clamp_min(0)
    row, column = row + number // columns * side, column + number % columns * side
    return torch.stack([tile.clamp_max(1), row, column], dim=-1).float()


def _positions(places: Tensor, columns: int, side: int) -> Tensor:
    """Return frame, tile, row and column of packed places, (N, 4)."""
    # Midway between two, all tokens of a row or column go to the same, whatever the interpolation's rounding errors.
    view, row, column = (places + 0.501).floor().long().unbind(-1)
    tile = torch.where(view > 0, 1 + row // side * columns + column // side, view)
    return torch.stack([torch.zeros_like(tile), tile, row % side, column % side], dim=-1)


def unpacked(rows: VisualTokens, *, several: bool, layout: Layout | None = None) -> Visual:
    """Tell tokens from newlines, whose tile is negative; `several` tiles begin with the small view."""
    slots, tile = torch.arange(len(rows)), rows.positions[:, 1].cpu()
    newlines, places = slots[tile < 0], slots[tile >= 0]
    breaks = torch.cat([newlines, newlines.new_full((1,), -1)])[torch.searchsorted(newlines, places)]
    if several:
        # The small view has no newlines of its own.
        breaks = breaks.masked_fill(tile[places] == 0, -1)
    return Visual(rows[places], len(rows), places, breaks, layout=layout)
