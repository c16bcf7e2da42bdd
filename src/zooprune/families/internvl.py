"""InternVL 3 and 3.5 ("-hf"): tiles of 448 pixels, four patches shuffled into a token, a norm before the projector."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from torch import nn

from zooprune.families.base import Encoded, Family, Modality, Visual, joined, square_tiles
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
        output, read = self.run(model, modality, inputs, projector)
        tiles = iter(square_tiles(read, output.pooler_output, self.token_wise(projector)))
        length = output.pooler_output.shape[1]
        visuals = []
        for row in self.slots(model, modality, inputs["input_ids"]).tolist():
            for is_image, run in groupby(row):
                if is_image:
                    image = [tile for _, tile in zip(range(len(list(run)) // length), tiles, strict=False)]
                    visuals.append(Visual.plain(joined(image, axis=1)))
        return Encoded(visuals, output)
