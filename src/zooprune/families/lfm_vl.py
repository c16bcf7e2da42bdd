"""LFM2-VL and LFM3-VL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

from torch import Tensor, nn

from zooprune.families.base import Family
from zooprune.families.gridded import Gridded
from zooprune.families.reading import Seen
from zooprune.families.tiling import blocks, grid_positions, nearest_shape, one_id_apart, runs, tiled_images
from zooprune.projectors import NormedMLP
from zooprune.signals import TowerSignal
from zooprune.tokens import VisualTokens
from zooprune.visuals import Encoded, Modality


class Lfm2VL(Family):
    """``Lfm2VlForConditionalGeneration``: tiles of any size, and four patches shuffled into a token.

    A name of the tile stands before every tile, and the tokens for beginning and end of an image come on top of it. So
    tiles one id apart are one image. The last of several tiles is the whole image in small.
    """

    architectures = ("Lfm2VlForConditionalGeneration",)
    title = "LFM2-VL"
    unthinned = architectures
    traits = ("tiles", "any size")
    image_arguments = ("pixel_values", "spatial_shapes", "pixel_attention_mask")

    def tail(self, projector: Any) -> nn.Module:
        """Return what follows the shuffle."""
        if projector.layer_norm is None:
            return nn.Sequential(projector.linear_1, projector.act, projector.linear_2)
        return NormedMLP(projector.layer_norm, projector.linear_1, projector.act, projector.linear_2)

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode all tiles."""
        projector = model.model.multi_modal_projector
        modules = {"projector": projector.linear_1 if projector.layer_norm is None else projector.layer_norm}
        output, seen, patches = self.forward(model, modality, inputs, modules, signals)
        tail = self.token_wise(projector)
        lengths = [len(rows) for rows in output.pooler_output]
        tiles = []
        for number, (x, z, grid) in enumerate(
            zip(
                _by_tile(seen["projector"], lengths),
                output.pooler_output,
                inputs["spatial_shapes"].tolist(),
                strict=True,
            )
        ):
            # Behind a tile's patches stands padding.
            total = grid[0] * grid[1]
            means = {
                name: blocks(values[number, :total], grid, projector.factor).mean(1) for name, values in patches.items()
            }
            positions = grid_positions(grid[0] // projector.factor, grid[1] // projector.factor, device=z.device)
            tiles.append(VisualTokens(x, z, tail, positions, means))
        prompts = runs(self.slots(model, modality, inputs["input_ids"]))
        slots = [length for prompt in prompts for length in one_id_apart(prompt)]
        return Encoded(tiled_images(tiles, slots, repeat(nearest_shape)), output)


def _by_tile(projector: Seen, lengths: Sequence[int]) -> list[Tensor]:
    """Return the rows that the projector read of each tile."""
    # Up to transformers 5.23, it reads tile by tile; later all at once, with as many rows for each as for the largest.
    tiles = projector.inputs if len(projector.inputs) == len(lengths) else projector.read.chunk(len(lengths))
    return [rows.flatten(0, -2)[:length] for rows, length in zip(tiles, lengths, strict=True)]


class Lfm3VL(Gridded):
    """``Lfm3VlForConditionalGeneration``: patches with a grid, each normed before four of them are merged."""

    architectures = ("Lfm3VlForConditionalGeneration",)
    title = "LFM3-VL"
    unthinned = architectures
    tower = "vision_tower"

    def merger(self, model: Any) -> nn.Module:
        """Return the projector."""
        module: nn.Module = model.model.multi_modal_projector
        return module

    def tail(self, projector: Any) -> nn.Module:
        """Return the projector as norm, layer, activation, layer."""
        merged = projector.merged_hidden_size // projector.layer_norm.weight.shape[0]
        return NormedMLP(projector.layer_norm, projector.linear_1, projector.act, projector.linear_2, merged)
