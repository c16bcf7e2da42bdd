"""Aya Vision and Command A Vision: tiles, patches shuffled into tokens, a gated projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any

from torch import nn

from zooprune.families.base import Family
from zooprune.families.tiling import (
    least_resized,
    nearest_shape,
    one_id_apart,
    pooled,
    runs,
    square_tiles,
    tiled_images,
)
from zooprune.layout import Grid
from zooprune.projectors import GatedMLP
from zooprune.signals import TowerSignal
from zooprune.visuals import Encoded, Modality


class AyaVision(Family):
    """``AyaVisionForConditionalGeneration`` and ``Cohere2VisionForConditionalGeneration``.

    A single id stands between the tiles of an image, a name of the tile or a line break, and never between two
    images, whose tokens for beginning and end come on top of it. So tiles one id apart are one image. The last of
    several tiles is the whole image in small.
    """

    architectures = ("AyaVisionForConditionalGeneration", "Cohere2VisionForConditionalGeneration")
    title = "Aya Vision, Command A Vision"
    sensitivity = "sampled"
    traits = ("tiles",)
    image_arguments = ("pixel_values", "vision_feature_layer", "vision_feature_select_strategy")

    def tail(self, projector: Any) -> nn.Module:
        """Return what follows the shuffle."""
        norm = getattr(projector, "layernorm", None) or nn.Identity()
        return GatedMLP(norm, projector.linear_1, projector.act, projector.linear_2)

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode all tiles."""
        projector = model.model.multi_modal_projector
        # The first layer after the shuffle reads what the projector makes tokens of.
        first = getattr(projector, "layernorm", None) or projector.linear_1
        output, seen, patches = self.forward(model, modality, inputs, {"projector": first}, signals)
        embeddings = output.pooler_output
        given = pooled(patches, embeddings.shape[1])
        tiles = square_tiles(seen["projector"].read, embeddings, self.token_wise(projector), given)
        prompts = runs(self.slots(model, modality, inputs["input_ids"]))
        slots = [length for prompt in prompts for length in one_id_apart(prompt)]
        return Encoded(tiled_images(tiles, slots, repeat(_grid(model.config))), output)


def _grid(config: Any) -> Grid:
    """Return how a model's processor cuts an image into tiles."""
    if config.model_type == "cohere2_vision":
        return partial(least_resized, config.vision_config.image_size)
    return nearest_shape
