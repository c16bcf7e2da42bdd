"""Aya Vision and Command A Vision: tiles, patches shuffled into tokens, a gated projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from zooprune.families.base import Encoded, Family, Modality, Visual, square_tiles
from zooprune.projectors import GatedMLP


class AyaVision(Family):
    """``AyaVisionForConditionalGeneration`` and ``Cohere2VisionForConditionalGeneration``.

    Every tile stands in the prompt by itself, between markers that only the tokenizer can tell apart; so a tile
    counts as an image, and ``scope="prompt"`` gives all of them one budget.
    """

    architectures = ("AyaVisionForConditionalGeneration", "Cohere2VisionForConditionalGeneration")
    title = "Aya Vision, Command A Vision"
    sensitivity = "sampled"
    traits = ("tiles apart",)
    image_arguments = ("pixel_values", "vision_feature_layer", "vision_feature_select_strategy")

    def tail(self, projector: Any) -> nn.Module:
        """Return what follows the shuffle."""
        norm = getattr(projector, "layernorm", None) or nn.Identity()
        return GatedMLP(norm, projector.linear_1, projector.act, projector.linear_2)

    def encode(self, model: Any, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
        """Encode all tiles."""
        projector = model.model.multi_modal_projector
        # The first layer after the shuffle reads what the projector makes tokens of.
        first = getattr(projector, "layernorm", None) or projector.linear_1
        output, read = self.run(model, modality, inputs, first)
        tiles = square_tiles(read, output.pooler_output, self.token_wise(projector))
        return Encoded([Visual.plain(tile) for tile in tiles], output)
