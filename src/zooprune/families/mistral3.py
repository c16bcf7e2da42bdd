"""Mistral Small 3.1 and later (Pixtral tower): each patch normed, 2 x 2 merged, then two layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zooprune.families.base import Family
from zooprune.families.tiling import blocks, grid_positions
from zooprune.projectors import NormedMLP
from zooprune.signals import TowerSignal
from zooprune.tokens import VisualTokens
from zooprune.visuals import Encoded, Modality, Visual


class Mistral3(Family):
    """``Mistral3`` and ``MistralLarge4ForConditionalGeneration``.

    A row of tokens ends with a break, which is text and stays.
    """

    architectures = ("Mistral3ForConditionalGeneration", "MistralLarge4ForConditionalGeneration")
    title = "Mistral Small 3.1 and later, Mistral Large 4"
    unthinned = ("MistralLarge4ForConditionalGeneration",)
    traits = ("any size",)
    image_arguments = ("pixel_values", "image_sizes", "vision_feature_layer")

    def tail(self, projector: Any) -> nn.Module:
        """Return norm, merging and first layer in one, activation, second layer."""
        first = MergingLinear(projector.patch_merger.merging_layer, projector.linear_1)
        merged = projector.patch_merger.spatial_merge_size**2
        return NormedMLP(projector.norm, first, projector.act, projector.linear_2, merged)

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the images; a token's features are those of its four patches before the norm."""
        projector = model.model.multi_modal_projector
        output, seen, signalled = self.forward(model, modality, inputs, {"projector": projector}, signals)
        merge = projector.patch_merger.spatial_merge_size
        grids = (torch.as_tensor(inputs["image_sizes"]).cpu() // projector.patch_merger.patch_size).tolist()
        tail = self.token_wise(projector)
        visuals = []
        sizes = [rows * columns for rows, columns in grids]
        patches = seen["projector"].read.split(sizes)
        given = {name: values.flatten(0, 1).split(sizes) for name, values in signalled.items()}
        for number, (x, z, grid) in enumerate(zip(patches, output.pooler_output, grids, strict=True)):
            means = {name: blocks(values[number], grid, merge).mean(1) for name, values in given.items()}
            positions = grid_positions(grid[0] // merge, grid[1] // merge, device=z.device)
            visuals.append(Visual.plain(VisualTokens(blocks(x, grid, merge).flatten(1), z, tail, positions, means)))
        return Encoded(visuals, output)


class MergingLinear(nn.Module):
    """The merging layer and the first linear layer, which follow each other without anything between.

    The merging layer reads a channel's four patches side by side; here the four patches come one after the other.
    """

    def __init__(self, merging: nn.Linear, linear: nn.Linear) -> None:
        super().__init__()
        self.merging, self.linear = merging, linear
        self.width = merging.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., patches * d) to (..., d_hidden)."""
        by_channel = x.unflatten(-1, (-1, self.width)).transpose(-1, -2).flatten(-2)
        return self.linear(self.merging(by_channel))
