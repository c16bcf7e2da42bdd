"""DeepSeek-VL: one tile, and an aligner of two layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from zooprune.families.base import Encoded, Family, Modality, Visual, square_tiles


class DeepseekVL(Family):
    """``DeepseekVLForConditionalGeneration``."""

    architectures = ("DeepseekVLForConditionalGeneration",)
    title = "DeepSeek-VL"
    image_arguments = ("pixel_values",)

    def encode(self, model: Any, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
        """Encode the images."""
        aligner = model.model.aligner
        with self.noting(aligner.linear1) as first:
            output, read = self.run(model, modality, inputs, aligner)
        images = square_tiles(read, output.pooler_output, aligner, torch.cat(first))
        return Encoded([Visual.plain(image) for image in images], output)
