"""DeepSeek-VL: one tile, and an aligner of two layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zooprune.families.base import Family
from zooprune.families.tiling import pooled, square_tiles
from zooprune.signals import TowerSignal
from zooprune.visuals import Encoded, Modality, Visual


class DeepseekVL(Family):
    """``DeepseekVLForConditionalGeneration``."""

    architectures = ("DeepseekVLForConditionalGeneration",)
    title = "DeepSeek-VL"
    tower = "vision_model"
    image_arguments = ("pixel_values",)

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the images."""
        aligner = model.model.aligner
        modules = {"projector": aligner, "first layer": aligner.linear1}
        output, seen, patches = self.forward(model, modality, inputs, modules, signals)
        embeddings = output.pooler_output
        given = {"first_layer": seen["first layer"].gave} | pooled(patches, embeddings.shape[1])
        images = square_tiles(seen["projector"].read, embeddings, aligner, given)
        return Encoded([Visual.plain(image) for image in images], output)
