"""LLaVA, LLaVA-1.5 and their forks: an image is one tile, and the projector has two layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from zooprune.families.base import Family
from zooprune.signals import TowerSignal
from zooprune.tokens import NEWLINE, VisualTokens
from zooprune.visuals import Encoded, Modality, Visual


class Llava(Family):
    """``LlavaForConditionalGeneration`` with any vision tower and text model that the class takes."""

    architectures = ("LlavaForConditionalGeneration",)
    title = "LLaVA, LLaVA-1.5, BakLLaVA, Pixtral-12B"
    image_arguments: ClassVar[tuple[str, ...]] = (
        "pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy",
    )  # fmt: skip

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the images; the projector's input, first layer and output are read off as they pass."""
        projector = model.model.multi_modal_projector
        modules = {"projector": projector, "first layer": projector.linear_1}
        output, seen, patches = self.forward(model, modality, inputs, modules, signals)
        embeddings = list(output.pooler_output)
        # Pixtral-like towers pack images of different sizes into one row, CLIP-like ones give a row each.
        lengths = [len(image) for image in embeddings]
        features, tail = seen["projector"].read.split(lengths), self.token_wise(projector)
        rows = {"first_layer": seen["first layer"].gave} | self._by_token(patches, lengths)
        given = {name: values.split(lengths) for name, values in rows.items()}
        sizes = inputs.get("image_sizes")
        if sizes is None:
            sizes = [inputs["pixel_values"].shape[-2:]] * len(embeddings)
        grids = torch.as_tensor(sizes).cpu() // torch.as_tensor(model.config.vision_config.patch_size)
        tokens = [
            VisualTokens(
                x,
                z,
                tail,
                patch_grid(len(z), *grid, device=z.device),
                {name: values[number] for name, values in given.items()},
            )
            for number, (x, z, grid) in enumerate(zip(features, embeddings, grids.tolist(), strict=True))
        ]
        return Encoded([Visual.plain(image) for image in tokens], output)

    def _by_token(self, patches: Mapping[str, Tensor], lengths: list[int]) -> dict[str, Tensor]:
        """Return signals as rows like the features; a class token that the model keeps has none, and gets zeros."""
        total = sum(lengths)

        def rows(values: Tensor) -> Tensor:
            missing = total - values.shape[0] * values.shape[1]
            if missing:
                values = torch.cat(
                    [values.new_zeros(len(values), missing // len(values), values.shape[2]), values], dim=1
                )
            return values.flatten(0, 1)

        return {name: rows(values) for name, values in patches.items()}


def patch_grid(total: int, rows: int, columns: int, *, device: torch.device) -> Tensor:
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
