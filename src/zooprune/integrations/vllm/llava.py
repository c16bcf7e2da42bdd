"""LLaVA and LLaVA-1.5 in vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from zooprune.families.llava import patch_grid
from zooprune.integrations.vllm.choosing import Chooser, at_once, parts
from zooprune.integrations.vllm.processing import PrunedInfo, PrunedProcessor, taken_asks
from zooprune.integrations.vllm.projector import ProjectorCopy
from zooprune.tokens import VisualTokens
from zooprune.visuals import Visual


class Info(PrunedInfo, LlavaProcessingInfo):
    """Every image has the same number of rows."""

    def image_totals(self, processed: Mapping[str, Any]) -> list[int]:
        """Return the rows of each image."""
        side: int = self.get_vision_encoder_info().get_image_size()
        return [self.get_num_image_tokens(image_width=side, image_height=side)] * len(processed.get("pixel_values", ()))


class Processor(PrunedProcessor, LlavaMultiModalProcessor):
    """vLLM's processor with fewer placeholders."""


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=LlavaDummyInputsBuilder)
class PrunedLlava(LlavaForConditionalGeneration):
    """vLLM's model, which encodes all of an image and gives the language model a part of it."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        copy = ProjectorCopy(LlavaMultiModalProjector(self.config), "multi_modal_projector.")
        self.chooser = Chooser.of(vllm_config, self, copy)
        vision = self.config.vision_config
        self._side = vision.image_size // vision.patch_size
        self._at_once = at_once(vllm_config, self._side**2)

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
        found = []
        for pixels, some in parts(image_input["pixel_values"], asks, self._at_once):
            features = self._image_pixels_to_features(self.vision_tower, pixels)
            embeddings = self.multi_modal_projector(features)
            for x, z, ask in zip(features, embeddings, some, strict=True):
                grid = patch_grid(len(z), self._side, self._side, device=z.device)
                visual = Visual.plain(VisualTokens(x, z, self.chooser.copy.projector, grid))
                found.append(self.chooser.choose(visual, z, ask).rows)
        return found
