"""InternVL 3 and 3.5 ("-hf") and Qianfan-OCR: tiles, four patches shuffled into a token, a norm before two layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

from torch import nn

from zooprune.families.base import Family
from zooprune.families.tiling import nearest_shape, pooled, runs, square_tiles, tiled_images
from zooprune.projectors import NormedMLP
from zooprune.signals import TowerSignal
from zooprune.visuals import Encoded, Modality


class InternVL(Family):
    """``InternVL`` and ``QianfanOCRForConditionalGeneration``.

    The last of several tiles is the whole image in small.
    """

    architectures = ("InternVLForConditionalGeneration", "QianfanOCRForConditionalGeneration")
    title = "InternVL 3 and 3.5, Qianfan-OCR"
    traits = ("tiles",)
    image_arguments = ("pixel_values", "vision_feature_layer", "vision_feature_select_strategy")

    def tail(self, projector: Any) -> nn.Module:
        """Return the projector as norm, layer, activation, layer."""
        return NormedMLP(projector.layer_norm, projector.linear_1, projector.act, projector.linear_2)

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode all tiles; those whose placeholders follow each other without a break are one image."""
        projector = model.model.multi_modal_projector
        modules = {"projector": projector, "first layer": projector.linear_1}
        output, seen, patches = self.forward(model, modality, inputs, modules, signals)
        embeddings = output.pooler_output
        given = {"first_layer": seen["first layer"].gave} | pooled(patches, embeddings.shape[1])
        tiles = square_tiles(seen["projector"].read, embeddings, self.token_wise(projector), given)
        prompts = runs(self.slots(model, modality, inputs["input_ids"]))
        slots = [len(run) for prompt in prompts for run in prompt]
        return Encoded(tiled_images(tiles, slots, repeat(nearest_shape)), output)
