"""VideoLLaMA 3: images and videos of any size, patches averaged before a projector of two layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zooprune.families.base import Family
from zooprune.families.tiling import grid_positions
from zooprune.signals import TowerSignal
from zooprune.tokens import VisualTokens
from zooprune.visuals import Encoded, Modality, Visual


class VideoLlama3(Family):
    """``VideoLlama3ForConditionalGeneration``.

    How many patches make up a token is said for each image and video. Tokens of a video that show what the frame
    before showed are left out by the model, as the processor says in ``video_compression_mask``.
    """

    architectures = ("VideoLlama3ForConditionalGeneration",)
    title = "VideoLLaMA 3"
    traits = ("any size",)
    tower = "vision_model"
    image_arguments = ("pixel_values", "image_grid_thw", "image_merge_sizes")
    video_arguments = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")
    consumed = ("mm_token_type_ids", "video_compression_mask")

    def tail(self, projector: Any) -> nn.Module:
        """Return the two layers."""
        module: nn.Module = projector.readout
        return module

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the images, or the videos without what the model leaves out."""
        projector = model.model.projector
        modules = {"projector": projector, "first layer": projector.readout[0]}
        output, seen, patches = self.forward(model, modality, inputs, modules, signals)
        lengths = [len(rows) for rows in output.pooler_output]
        grids, merges = (inputs[name].tolist() for name in self.arguments(modality)[1:])
        rows = {"projector": seen["projector"].read, "first_layer": seen["first layer"].gave}
        rows |= {name: _means(values.flatten(0, 1), grids, merges) for name, values in patches.items()}
        stays = torch.ones(sum(lengths), dtype=torch.bool)
        if modality == "video" and inputs.get("video_compression_mask") is not None:
            stays = inputs["video_compression_mask"].flatten().cpu()
        given = {name: values.split(lengths) for name, values in rows.items()}
        features = given.pop("projector")
        tail = self.token_wise(projector)
        visuals = []
        for number, ((frames, height, width), merge, kept) in enumerate(
            zip(grids, merges, stays.split(lengths), strict=True)
        ):
            z = output.pooler_output[number]
            positions = grid_positions(height // merge, width // merge, frames=frames, device=z.device)
            own = {name: values[number] for name, values in given.items()}
            tokens = VisualTokens(features[number], z, tail, positions, own)
            visuals.append(Visual.plain(tokens if bool(kept.all()) else tokens[kept.nonzero()[:, 0].to(z.device)]))
        output.pooler_output = [visual.tokens.embeddings for visual in visuals]
        return Encoded(visuals, output)


def _means(values: Tensor, grids: Sequence[Sequence[int]], merges: Sequence[int]) -> Tensor:
    """Return the mean over the patches of each token, which come one after the other."""
    pieces = values.split([frames * rows * columns for frames, rows, columns in grids])
    return torch.cat([piece.unflatten(0, (-1, merge**2)).mean(1) for piece, merge in zip(pieces, merges, strict=True)])
