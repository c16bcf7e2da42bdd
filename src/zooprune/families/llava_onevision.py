"""LLaVA-OneVision: LLaVA-NeXT's tiles, made smaller where there are many, and videos of pooled frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from zooprune.families.base import Encoded, Modality, Visual, grid_positions
from zooprune.families.llava_next import LlavaNext
from zooprune.tokens import VisualTokens


class LlavaOnevision(LlavaNext):
    """``LlavaOnevisionForConditionalGeneration``.

    The model interpolates the projector's output, for many tiles and for every frame of a video. What the projector
    read is interpolated alike, so sensitivity is that of the mixed features.
    """

    architectures = ("LlavaOnevisionForConditionalGeneration",)
    title = "LLaVA-OneVision"
    image_arguments = (*LlavaNext.image_arguments, "vision_aspect_ratio", "batch_num_images")
    video_arguments = ("pixel_values_videos", "vision_feature_layer", "vision_feature_select_strategy")

    def encode(self, model: Any, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
        """Encode the tiles of images, or the frames of videos, which end with one newline."""
        if modality == "image":
            return super().encode(model, modality, inputs)
        projector = model.model.multi_modal_projector
        with self.noting(projector.linear_1) as first:
            output, read = self.run(model, modality, inputs, projector)
        videos = output.pooler_output
        count, frames = inputs["pixel_values_videos"].shape[:2]
        features, hidden = (
            model.model.apply_pooling(rows.unflatten(0, (count * frames, -1))) for rows in (read, torch.cat(first))
        )
        side = round(features.shape[1] ** 0.5)
        positions = grid_positions(side, side, frames=frames, device=read.device)
        tail = self.token_wise(projector)
        places = torch.arange(len(positions))
        newline = torch.full_like(places, len(places))
        visuals = [
            Visual(VisualTokens(x, z[:-1], tail, positions, h), len(z), places, newline)
            for x, h, z in zip(
                *(rows.flatten(0, 1).split(len(positions)) for rows in (features, hidden)), videos, strict=True
            )
        ]
        return Encoded(visuals, output)
