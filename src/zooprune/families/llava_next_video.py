"""LLaVA-NeXT-Video: LLaVA-NeXT that also reads videos, whose frames are pooled before the projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zooprune.families.llava_next import LlavaNext
from zooprune.families.tiling import grid_positions, pooled
from zooprune.signals import TowerSignal
from zooprune.tokens import VisualTokens
from zooprune.visuals import Encoded, Modality, Visual


class LlavaNextVideo(LlavaNext):
    """``LlavaNextVideoForConditionalGeneration``."""

    architectures = ("LlavaNextVideoForConditionalGeneration",)
    title = "LLaVA-NeXT-Video"
    video_arguments = ("pixel_values_videos", "vision_feature_layer", "vision_feature_select_strategy")

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the tiles of images, or the frames of videos."""
        if modality == "image":
            return super().encode(model, modality, inputs, signals)
        projector = model.model.multi_modal_projector
        modules = {"projector": projector, "first layer": projector.linear_1}
        output, seen, patches = self.forward(model, modality, inputs, modules, signals)
        videos = output.pooler_output
        frames = inputs["pixel_values_videos"].shape[1]
        side = round((videos.shape[1] // frames) ** 0.5)
        positions = grid_positions(side, side, frames=frames, device=videos.device)
        tail, total = self.token_wise(projector), videos.shape[1]
        rows = {"first_layer": seen["first layer"].gave} | pooled(patches, side * side)
        given = {name: values.split(total) for name, values in rows.items()}
        visuals = [
            Visual.plain(VisualTokens(x, z, tail, positions, {name: values[clip] for name, values in given.items()}))
            for clip, (x, z) in enumerate(zip(seen["projector"].read.split(total), videos, strict=True))
        ]
        return Encoded(visuals, output)
