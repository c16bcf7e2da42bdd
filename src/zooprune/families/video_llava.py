"""Video-LLaVA: LLaVA with a second tower for videos, whose frames keep their class token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zooprune.families.base import Family
from zooprune.families.tiling import grid_positions
from zooprune.signals import TowerSignal
from zooprune.tokens import NEWLINE, VisualTokens
from zooprune.visuals import Encoded, Modality, Visual


class VideoLlava(Family):
    """``VideoLlavaForConditionalGeneration``.

    Its processor calls the pixels of images `pixel_values_images`.
    """

    architectures = ("VideoLlavaForConditionalGeneration",)
    title = "Video-LLaVA"
    image_arguments = ("pixel_values_images", "vision_feature_layer", "vision_feature_select_strategy")
    video_arguments = ("pixel_values_videos", "vision_feature_layer")
    # Images and videos have a tower each.
    gives_tower_signals = False

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the images, or the frames of the videos."""
        projector = model.model.multi_modal_projector
        modules = {"projector": projector, "first layer": projector.linear_1}
        output, seen, _ = self.forward(model, modality, inputs, modules)
        pixels: Tensor = inputs[self.arguments(modality)[0]]
        # Frames of all videos come one after the other.
        frames = pixels.shape[1] if modality == "video" else 1
        rows, columns = (side // model.config.vision_config.patch_size for side in pixels.shape[-2:])
        positions = _frames(output.pooler_output.shape[1], frames, rows, columns, device=output.pooler_output.device)
        total = len(positions)
        visuals = [
            Visual.plain(VisualTokens(x, z, projector, positions, {"first_layer": hidden}))
            for x, z, hidden in zip(
                seen["projector"].read.split(total),
                output.pooler_output.flatten(0, 1).split(total),
                seen["first layer"].gave.split(total),
                strict=True,
            )
        ]
        return Encoded(visuals, output)


def _frames(per_frame: int, frames: int, rows: int, columns: int, *, device: torch.device) -> Tensor:
    """Return the positions of a clip, (frames * per_frame, 4); a class token before the patches shows none of them."""
    patches = grid_positions(rows, columns, frames=frames, device=device).unflatten(0, (frames, -1))
    leading = patches[:, :1].expand(-1, per_frame - rows * columns, -1).clone()
    leading[..., 2:] = NEWLINE
    return torch.cat([leading, patches], dim=1).flatten(0, 1)
