"""LLaVA-NeXT: a small view of the whole image and tiles of it, unpadded, with a newline after every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from zooprune.families.base import Family
from zooprune.families.tiling import grid_positions
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
        grids = [
            grid_positions(side, side, tile=tile, device=tiles.device) for count in counts for tile in range(count)
        ]
        # A newline is told apart by a tile number that cannot be.
        positions = packed(torch.stack(grids).float(), -1.0)
        tail = self.token_wise(projector)
        visuals = [
            unpacked(
                VisualTokens(
                    x, z, tail, place.round().long(), {name: values[number] for name, values in given.items()}
                ),
                several=count > 1,
            )
            for number, (x, z, place, count) in enumerate(
                zip(features, output.pooler_output, positions, counts, strict=True)
            )
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
