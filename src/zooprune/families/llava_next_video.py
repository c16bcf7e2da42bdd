"""LLaVA-NeXT-Video: LLaVA-NeXT that also reads videos, whose frames are pooled before the projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from zooprune.families.base import Encoded, Modality, Visual, grid_positions
from zooprune.families.llava_next import LlavaNext
from zooprune.tokens import VisualTokens


class LlavaNextVideo(LlavaNext):
    """``LlavaNextVideoForConditionalGeneration``."""

    architectures = ("LlavaNextVideoForConditionalGeneration",)
    title = "LLaVA-NeXT-Video"
    video_arguments = ("pixel_values_videos", "vision_feature_layer", "vision_feature_select_strategy")

    def encode(self, model: Any, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
        """Encode the tiles of images, or the frames of videos."""
        if modality == "image":
            return super().encode(model, modality, inputs)
        projector = model.model.multi_modal_projector
        with self.noting(projector.linear_1) as first:
            output, read = self.run(model, modality, inputs, projector)
        videos = output.pooler_output
        frames = inputs["pixel_values_videos"].shape[1]
        side = round((videos.shape[1] // frames) ** 0.5)
        positions = grid_positions(side, side, frames=frames, device=read.device)
        tail = self.token_wise(projector)
        visuals = [
            Visual.plain(VisualTokens(x, z, tail, positions, h))
            for x, h, z in zip(*(rows.split(videos.shape[1]) for rows in (read, torch.cat(first))), videos, strict=True)
        ]
        return Encoded(visuals, output)
