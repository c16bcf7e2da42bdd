"""PaliGemma 1 and 2: one linear layer for a projector, so that only diversity can tell tokens apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zooprune.families.base import Encoded, Family, Modality, Visual, square_tiles


class PaliGemma(Family):
    """``PaliGemmaForConditionalGeneration``. The prompt attends to itself in both directions; positions start at 1."""

    architectures = ("PaliGemmaForConditionalGeneration",)
    title = "PaliGemma, PaliGemma 2"
    sensitivity = "linear"
    traits = ("two-way attention",)
    image_arguments = ("pixel_values",)
    per_token = ("token_type_ids",)
    first_position = 1

    def encode(self, model: Any, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
        """Encode the images."""
        projector = model.model.multi_modal_projector
        output, read = self.run(model, modality, inputs, projector)
        images = square_tiles(read, output.pooler_output, projector)
        return Encoded([Visual.plain(image) for image in images], output)
