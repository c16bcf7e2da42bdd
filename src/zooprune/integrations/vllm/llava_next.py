"""LLaVA-NeXT in vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import LlavaNextMultiModalProjector
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from zooprune.families.llava_next import unpacked
from zooprune.families.tiling import grid_positions
from zooprune.integrations.vllm.choosing import Chooser, at_once, parts
from zooprune.integrations.vllm.processing import Ask, PrunedInfo, PrunedProcessor, taken_asks
from zooprune.integrations.vllm.projector import ProjectorCopy
from zooprune.tokens import VisualTokens


class Info(PrunedInfo, LlavaNextProcessingInfo):
    """An image has rows by its shape."""

    def image_totals(self, processed: Mapping[str, Any]) -> list[int]:
        """Return the rows of each image."""
        return [
            self.get_num_image_tokens(image_width=int(width), image_height=int(height))
            for height, width in processed.get("image_sizes", ())
        ]


class Processor(PrunedProcessor, LlavaNextMultiModalProcessor):
    """vLLM's processor with fewer placeholders."""


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=LlavaDummyInputsBuilder)
class PrunedLlavaNext(LlavaNextForConditionalGeneration):
    """vLLM's model, which encodes all of an image and gives the language model a part of it."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        copy = ProjectorCopy(LlavaNextMultiModalProjector(self.config), "multi_modal_projector.")
        self.chooser = Chooser.of(vllm_config, self, copy)
        vision = self.config.vision_config
        self._side = vision.image_size // vision.patch_size
        tiles = 1 + max(
            (height // vision.image_size) * (width // vision.image_size)
            for height, width in self.config.image_grid_pinpoints
        )
        self._at_once = at_once(vllm_config, tiles * self._side**2)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the weights, and copy the projector's."""
        loaded: set[str] = super().load_weights(self.chooser.copy.listening(weights))
        self.chooser.prove(self.config.vision_config.hidden_size, self.config.text_config.hidden_size)
        return loaded

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Return the kept rows of each image."""
        asks = taken_asks(kwargs)
        image_input = self._parse_and_validate_image_input(**kwargs)
        if image_input is None:
            return []
        images = list(zip(image_input["pixel_values"], image_input["image_sizes"], strict=True))
        found = []
        for portion, some in parts(images, asks, self._at_once):
            counts = [len(tiles) for tiles, _ in portion]
            features = self._image_pixels_to_features(self.vision_tower, torch.cat([tiles for tiles, _ in portion]))
            embeddings = self.multi_modal_projector(features)
            for x, z, (_, size), ask in zip(
                features.split(counts), embeddings.split(counts), portion, some, strict=True
            ):
                found.append(self._kept(x, z, size, ask))
        return found

    def _kept(self, features: Tensor, embeddings: Tensor, size: Tensor, ask: Ask) -> Tensor:
        """Return the kept rows of one image, given its tiles: (tiles, N, d) each."""
        rows = self._merge_image_patch_embeddings(size, embeddings, strategy="spatial_unpad")
        # The same packing of numbers says which token of which tile each row is, and where newlines stand.
        numbers = torch.arange(features.shape[0] * features.shape[1], dtype=torch.float32, device=rows.device)
        packing = SimpleNamespace(config=self.config, image_newline=torch.full((1,), -1.0, device=rows.device))
        packed = LlavaNextForConditionalGeneration._merge_image_patch_embeddings(
            packing, size, numbers.view(*features.shape[:2], 1), strategy="spatial_unpad"
        )
        order = packed[:, 0].long()
        grid = torch.cat(
            [grid_positions(self._side, self._side, tile=tile, device=rows.device) for tile in range(features.shape[0])]
        )
        # A newline is told apart by a tile number that cannot be; what stands beside it is not looked at.
        places = torch.where((order < 0)[:, None], -1, grid[order])
        tokens = VisualTokens(features.flatten(0, 1)[order], rows, self.chooser.copy.projector, places)
        return self.chooser.choose(unpacked(tokens, several=features.shape[0] > 1), rows, ask).rows
