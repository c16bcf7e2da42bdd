"""Mistral Small 3.1 and later (Pixtral tower): each patch normed, 2 x 2 merged, then two layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zooprune.families.base import Encoded, Family, Modality, Visual, grid_positions
from zooprune.projectors import NormedMLP
from zooprune.tokens import VisualTokens


class Mistral3(Family):
    """``Mistral3ForConditionalGeneration``. A row of tokens ends with a break, which is text and stays."""

    architectures = ("Mistral3ForConditionalGeneration",)
    title = "Mistral Small 3.1 and later"
    traits = ("any size",)
    image_arguments = ("pixel_values", "image_sizes", "vision_feature_layer")

    def tail(self, projector: Any) -> nn.Module:
        """Return norm, merging and first layer in one, activation, second layer."""
        first = MergingLinear(projector.patch_merger.merging_layer, projector.linear_1)
        blocks = projector.patch_merger.spatial_merge_size**2
        return NormedMLP(projector.norm, first, projector.act, projector.linear_2, blocks)

    def encode(self, model: Any, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
        """Encode the images; a token's features are those of its four patches before the norm."""
        projector = model.model.multi_modal_projector
        output, read = self.run(model, modality, inputs, projector)
        merge = projector.patch_merger.spatial_merge_size
        grids = (torch.as_tensor(inputs["image_sizes"]).cpu() // projector.patch_merger.patch_size).tolist()
        tail = self.token_wise(projector)
        visuals = []
        patches = read.split([rows * columns for rows, columns in grids])
        for x, z, (rows, columns) in zip(patches, output.pooler_output, grids, strict=True):
            # A last row or column that fills no block is left out, as the model does.
            blocks = x.view(rows, columns, -1)[: rows // merge * merge, : columns // merge * merge]
            blocks = blocks.unflatten(1, (-1, merge)).unflatten(0, (-1, merge)).transpose(1, 2)
            positions = grid_positions(rows // merge, columns // merge, device=z.device)
            visuals.append(Visual.plain(VisualTokens(blocks.flatten(2).flatten(0, 1), z, tail, positions)))
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
