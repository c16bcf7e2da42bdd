"""LLaVA and LLaVA-1.5: an image is one tile, and the projector has two layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zooprune.families.base import Encoded, Family
from zooprune.tokens import NEWLINE, VisualTokens


class Llava(Family):
    """``LlavaForConditionalGeneration`` with any vision tower and text model that the class takes."""

    architecture = "LlavaForConditionalGeneration"
    positions = "contiguous"
    image_arguments = ("pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy")

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> Encoded:
        """Encode the images; the projector's input and output are read off as they pass."""
        projector: nn.Module = model.model.multi_modal_projector
        read: list[Tensor] = []
        hook = projector.register_forward_hook(lambda _module, args, _output: read.append(args[0].detach()))
        arguments = {name: inputs[name] for name in self.image_arguments if inputs.get(name) is not None}
        try:
            output = model.get_image_features(**arguments, return_dict=True)
        finally:
            hook.remove()
        embeddings = list(output.pooler_output)
        # Pixtral-like towers pack images of different sizes into one row, CLIP-like ones give a row each.
        features = read[0].reshape(-1, read[0].shape[-1]).split([len(image) for image in embeddings])
        sizes = inputs.get("image_sizes")
        if sizes is None:
            sizes = [inputs["pixel_values"].shape[-2:]] * len(embeddings)
        grids = torch.as_tensor(sizes).cpu() // torch.as_tensor(model.config.vision_config.patch_size)
        images = [
            VisualTokens(x, z, projector, _grid(len(z), *grid, device=z.device))
            for x, z, grid in zip(features, embeddings, grids.tolist(), strict=True)
        ]
        return Encoded(images, type(output))

    def slots(self, model: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """Return where the image placeholder stands."""
        return input_ids == model.config.image_token_id


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
