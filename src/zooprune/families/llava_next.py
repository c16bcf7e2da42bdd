"""LLaVA-NeXT: a small view of the whole image and tiles of it, unpadded, with a newline after every row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from zooprune.families.base import Encoded, Family, Modality, Visual, grid_positions
from zooprune.tokens import VisualTokens


class LlavaNext(Family):
    """``LlavaNextForConditionalGeneration``. Tile 0 is the whole image in small."""

    architectures = ("LlavaNextForConditionalGeneration",)
    title = "LLaVA-NeXT (1.6)"
    traits = ("tiles", "newlines")
    image_arguments: ClassVar[tuple[str, ...]] = (
        "pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy",
    )  # fmt: skip

    def encode(self, model: Any, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
        """Encode the tiles, and send what the projector read through the packing that its output went through."""
        inner = model.model
        projector = inner.multi_modal_projector
        calls: list[tuple[list[int], tuple[Any, ...], dict[str, Any]]] = []
        pack = inner.pack_image_features

        def noting(image_features: list[Tensor], *args: Any, **kwargs: Any) -> Any:
            calls.append(([len(tiles) for tiles in image_features], args, kwargs))
            return pack(image_features, *args, **kwargs)

        inner.pack_image_features = noting
        try:
            with self.noting(projector.linear_1) as first:
                output, read = self.run(model, modality, inputs, projector)
        finally:
            del inner.pack_image_features
        ((counts, args, kwargs),) = calls
        # Sizes are read one by one, for which the host would have to wait for the device each time.
        args = tuple(value.cpu() if isinstance(value, Tensor) else value for value in args)

        def packed(tiles: list[Tensor], newline: float) -> list[Tensor]:
            mark = torch.full_like(tiles[0][0, 0], newline)
            return pack(tiles, *args, **{**kwargs, "image_newline": mark})[0]

        tiles = read.unflatten(0, (sum(counts), -1))
        side = round(tiles.shape[1] ** 0.5)
        features = packed(list(tiles.split(counts)), 0.0)
        hidden = packed(list(torch.cat(first).unflatten(0, (sum(counts), -1)).split(counts)), 0.0)
        grids = [
            torch.stack([grid_positions(side, side, tile=tile, device=read.device) for tile in range(count)])
            for count in counts
        ]
        # A newline is told apart by a tile number that cannot be.
        positions = packed([grid.float() for grid in grids], -1.0)
        tail = self.token_wise(projector)
        visuals = [
            unpacked(VisualTokens(x, z, tail, place.round().long(), h), several=count > 1)
            for x, z, place, h, count in zip(features, output.pooler_output, positions, hidden, counts, strict=True)
        ]
        return Encoded(visuals, output)


def unpacked(rows: VisualTokens, *, several: bool) -> Visual:
    """Tell tokens from newlines, whose tile is negative; `several` tiles begin with the small view."""
    slots, tile = torch.arange(len(rows)), rows.positions[:, 1].cpu()
    newlines, places = slots[tile < 0], slots[tile >= 0]
    breaks = torch.cat([newlines, newlines.new_full((1,), -1)])[torch.searchsorted(newlines, places)]
    if several:
        # The small view has no newlines of its own.
        breaks = breaks.masked_fill(tile[places] == 0, -1)
    return Visual(rows[places], len(rows), places, breaks)
