"""Gemma 3: 256 tokens an image, pooled from the tower's patches, then a norm and one matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from zooprune.families.base import Family
from zooprune.families.tiling import pooled, square_tiles
from zooprune.offloading import own_tensors
from zooprune.projectors import NormedLinear
from zooprune.signals import TowerSignal
from zooprune.visuals import Encoded, Modality, Visual


class Gemma3(Family):
    """``Gemma3ForConditionalGeneration``. Image tokens attend to each other in both directions, also when pruned."""

    architectures = ("Gemma3ForConditionalGeneration",)
    title = "Gemma 3"
    sensitivity = "sampled"
    traits = ("two-way attention",)
    image_arguments = ("pixel_values",)
    per_token = ("token_type_ids",)

    def tail(self, projector: Any) -> nn.Module:
        """Return what follows the pooling."""
        # No module is called for the matrix, so that accelerate does not bring it back when it is offloaded.
        matrix = dict(own_tensors(projector))["mm_input_projection_weight"]
        return NormedLinear(projector.mm_soft_emb_norm, matrix)

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the images; a crop of pan-and-scan counts as an image of its own."""
        projector = model.model.multi_modal_projector
        output, seen, patches = self.forward(
            model, modality, inputs, {"projector": projector.mm_soft_emb_norm}, signals
        )
        embeddings = output.pooler_output
        given = pooled(patches, embeddings.shape[1])
        images = square_tiles(seen["projector"].read, embeddings, self.token_wise(projector), given)
        return Encoded([Visual.plain(image) for image in images], output)
