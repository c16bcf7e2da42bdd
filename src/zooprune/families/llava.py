"""LLaVA, LLaVA-1.5 and their forks: an image is one tile, and the projector has two layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from zooprune.families.base import Encoded, Family, Modality, Visual
from zooprune.tokens import NEWLINE, VisualTokens


class Llava(Family):
    """``LlavaForConditionalGeneration`` with any vision tower and text model that the class takes."""

    architectures = ("LlavaForConditionalGeneration",)
    title = "LLaVA, LLaVA-1.5, BakLLaVA, Pixtral-12B"
    image_arguments: ClassVar[tuple[str, ...]] = (
        "pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy",
    )  # fmt: skip

    def encode(self, model: Any, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
        """Encode the images; the projector's input, first layer and output are read off as they pass."""
        projector = model.model.multi_modal_projector
        with self.noting(projector.linear_1) as first:
            output, read = self.run(model, modality, inputs, projector)
        embeddings = list(output.pooler_output)
        # Pixtral-like towers pack images of different sizes into one row, CLIP-like ones give a row each.
        lengths = [len(image) for image in embeddings]
        features, hidden, tail = read.split(lengths), torch.cat(first).split(lengths), self.token_wise(projector)
        sizes = inputs.get("image_sizes")
        if sizes is None:
            sizes = [inputs["pixel_values"].shape[-2:]] * len(embeddings)
        grids = torch.as_tensor(sizes).cpu() // torch.as_tensor(model.config.vision_config.patch_size)
        tokens = [
            VisualTokens(x, z, tail, _grid(len(z), *grid, device=z.device), h)
            for x, z, h, grid in zip(features, embeddings, hidden, grids.tolist(), strict=True)
        ]
        return Encoded([Visual.plain(one) for one in tokens], output)


def _grid(total: int, rows: int, columns: int, *, device: torch.device) -> Tensor:
    """Return frame, tile, row and column of the tokens of one image, (total, 4)."""
    # A class token and registers come before the patches, unless the model leaves them out.
    leading = total - rows * columns
    if leading < 0:
        raise ValueError(
            f"the vision tower gives {total} tokens for {rows} x {columns} patches; "
            'if it has no class token, set vision_feature_select_strategy="full"'
        )
    place = torch.arange(total, device=device) - leading
    nothing = torch.zeros_like(place)
    positions = torch.stack([nothing, nothing, place // columns, place % columns], dim=-1)
    positions[:leading, 2:] = NEWLINE
    return positions
