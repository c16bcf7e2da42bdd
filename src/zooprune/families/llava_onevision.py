"""LLaVA-OneVision: LLaVA-NeXT's tiles, made smaller where there are many, and videos of pooled frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from zooprune.families.llava_next import LlavaNext
from zooprune.families.tiling import grid_positions
from zooprune.signals import TowerSignal
from zooprune.tokens import VisualTokens
from zooprune.visuals import Encoded, Modality, Visual


class LlavaOnevision(LlavaNext):
    """``LlavaOnevisionForConditionalGeneration``.

    The model interpolates the projector's output, for many tiles and for every frame of a video. What the projector
    read is interpolated alike, so sensitivity is that of the mixed features.
    """

    architectures = ("LlavaOnevisionForConditionalGeneration",)
    title = "LLaVA-OneVision"
    image_arguments = (*LlavaNext.image_arguments, "vision_aspect_ratio", "batch_num_images")
    video_arguments = ("pixel_values_videos", "vision_feature_layer", "vision_feature_select_strategy")

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the tiles of images, or the frames of videos, which end with one newline."""
        if modality == "image":
            return super().encode(model, modality, inputs, signals)
        projector = model.model.multi_modal_projector
        modules = {"projector": projector, "first layer": projector.linear_1}
        output, seen, patches = self.forward(model, modality, inputs, modules, signals)
        videos = output.pooler_output
        count, frames = inputs["pixel_values_videos"].shape[:2]
        every = {"projector": seen["projector"].read, "first_layer": seen["first layer"].gave}
        frame_wise = {name: rows.unflatten(0, (count * frames, -1)) for name, rows in every.items()} | patches
        given = {name: model.model.apply_pooling(rows).flatten(0, 1) for name, rows in frame_wise.items()}
        side = round((len(given["projector"]) // (count * frames)) ** 0.5)
        positions = grid_positions(side, side, frames=frames, device=videos.device)
        tail = self.token_wise(projector)
        places = torch.arange(len(positions))
        newline = torch.full_like(places, len(places))
        split = {name: rows.split(len(positions)) for name, rows in given.items()}
        features = split.pop("projector")
        visuals = [
            Visual(
                VisualTokens(x, z[:-1], tail, positions, {name: values[clip] for name, values in split.items()}),
                len(z), places, newline,
            )
            for clip, (x, z) in enumerate(zip(features, videos, strict=True))
        ]  # fmt: skip
        return Encoded(visuals, output)
