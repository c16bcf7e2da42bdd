"""Idefics3 and SmolVLM: images split into tiles, patches shuffled into tokens, one linear layer for a projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from zooprune.families.base import Encoded, Family, Modality, Visual, square_tiles


class Idefics3(Family):
    """``Idefics3ForConditionalGeneration`` and ``SmolVLMForConditionalGeneration``.

    Every tile stands in the prompt by itself, between markers that only the tokenizer can tell apart; so a tile
    counts as an image, and ``scope="prompt"`` gives all of them one budget.
    """

    architectures = ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration")
    title = "Idefics3, SmolVLM, SmolVLM2"
    sensitivity = "linear"
    traits = ("tiles apart",)
    image_arguments = ("pixel_values", "pixel_attention_mask")

    def tail(self, projector: Any) -> nn.Module:
        """Return what follows the shuffle."""
        return projector.modality_projection

    def encode(self, model: Any, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
        """Encode all tiles."""
        connector = model.model.connector
        output, read = self.run(model, modality, inputs, connector.modality_projection)
        # The model hands back one piece per prompt, however many tiles it has.
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        total = (side // connector.scale_factor) ** 2
        tiles = torch.cat(list(output.pooler_output)).unflatten(0, (-1, total))
        return Encoded([Visual.plain(tile) for tile in square_tiles(read, tiles, self.token_wise(connector))], output)
