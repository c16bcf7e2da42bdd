"""InternVL 3 and 3.5 ("-hf"): tiles of 448 pixels, four patches shuffled into a token, a norm before the projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from zooprune.families.base import Encoded, Family, Modality, runs, square_tiles, tiled_images
from zooprune.projectors import NormedMLP


class InternVL(Family):
    """``InternVLForConditionalGeneration``. The last of several tiles is the whole image in small."""

    architectures = ("InternVLForConditionalGeneration",)
    title = "InternVL 3 and 3.5"
    traits = ("tiles",)
    image_arguments = ("pixel_values", "vision_feature_layer", "vision_feature_select_strategy")

    def tail(self, projector: Any) -> nn.Module:
        """Return the projector as norm, layer, activation, layer."""
        return NormedMLP(projector.layer_norm, projector.linear_1, projector.act, projector.linear_2)

    def encode(self, model: Any, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
        """Encode all tiles; those whose placeholders follow each other without a break are one image."""
        projector = model.model.multi_modal_projector
        with self.noting(projector.linear_1) as first:
            output, read = self.run(model, modality, inputs, projector)
        tiles = square_tiles(read, output.pooler_output, self.token_wise(projector), torch.cat(first))
        prompts = runs(self.slots(model, modality, inputs["input_ids"]))
        return Encoded(tiled_images(tiles, [len(run) for prompt in prompts for run in prompt]), output)
