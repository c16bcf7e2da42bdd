"""PaliGemma 1 and 2: one linear layer for a projector, so that only diversity can tell tokens apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zooprune.families.base import Family
from zooprune.families.tiling import pooled, square_tiles
from zooprune.signals import TowerSignal
from zooprune.visuals import Encoded, Modality, Visual


class PaliGemma(Family):
    """``PaliGemmaForConditionalGeneration``. The prompt attends to itself in both directions; positions start at 1."""

    architectures = ("PaliGemmaForConditionalGeneration",)
    title = "PaliGemma, PaliGemma 2"
    sensitivity = "linear"
    traits = ("two-way attention",)
    image_arguments = ("pixel_values",)
    per_token = ("token_type_ids",)
    first_position = 1
    continues = False

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the images."""
        projector = model.model.multi_modal_projector
        output, seen, patches = self.forward(model, modality, inputs, {"projector": projector}, signals)
        embeddings = output.pooler_output
        images = square_tiles(seen["projector"].read, embeddings, projector, pooled(patches, embeddings.shape[1]))
        return Encoded([Visual.plain(image) for image in images], output)
