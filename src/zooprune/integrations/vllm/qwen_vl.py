"""Qwen2.5-VL and Qwen3-VL in vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchMerger
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from zooprune.families.qwen_vl import Qwen2VL, Qwen3VL
from zooprune.families.tiling import grid_positions
from zooprune.integrations.vllm.choosing import Chooser, at_once, parts
from zooprune.integrations.vllm.mrope import COLUMNS, PrunedMRoPE, with_places
from zooprune.integrations.vllm.processing import Ask, PrunedInfo, PrunedProcessor, taken_asks
from zooprune.integrations.vllm.projector import ProjectorCopy
from zooprune.tokens import VisualTokens
from zooprune.visuals import Visual

#: Where the weights of the merger are in a checkpoint.
_MERGER = "visual.merger."


class _Info(PrunedInfo):
    """An image has rows by its grid."""

    get_hf_config: Callable[[], Any]

    def image_totals(self, processed: Mapping[str, Any]) -> list[int]:
        """Return the rows of each image."""
        merge = self.get_hf_config().vision_config.spatial_merge_size
        return [int(grid.prod()) // merge**2 for grid in processed.get("image_grid_thw", ())]


class Qwen2_5Info(_Info, Qwen2_5_VLProcessingInfo):  # noqa: N801
    """Of Qwen2.5-VL."""


class Qwen2_5Processor(PrunedProcessor, Qwen2_5_VLMultiModalProcessor):  # noqa: N801
    """vLLM's processor with fewer placeholders."""


class Qwen3Info(_Info, Qwen3VLProcessingInfo):
    """Of Qwen3-VL."""


class Qwen3Processor(PrunedProcessor, Qwen3VLMultiModalProcessor):
    """vLLM's processor with fewer placeholders."""


def _listening(merger: nn.Module) -> None:
    """Have a merger remember what it read, as `read`. It may be compiled, and then calls no hooks."""
    inner: Any = type(merger)

    class Listening(inner):
        """The same merger."""

        read: Tensor | None = None

        def __call__(self, patches: Tensor) -> Tensor:
            self.read = patches
            rows: Tensor = super().__call__(patches)
            return rows

    merger.__class__ = Listening


class _PrunedQwen(PrunedMRoPE):
    """Beside a model of vLLM with Qwen's tower, which comes after it among the bases."""

    visual: Any
    _process_video_input: Callable[[Any], Sequence[Tensor]]
    _parse_and_validate_multimodal_inputs: Callable[..., dict[str, Any]]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.chooser = Chooser.of(vllm_config, self, self._copy())
        _listening(self.visual.merger)
        # Videos are not pruned, whatever the configuration says to have positions set after encoding.
        self.is_multimodal_pruning_enabled = False
        self._vllm_config = vllm_config

    def _copy(self) -> ProjectorCopy:
        """Return the plain copy of the merger, before it has weights."""
        raise NotImplementedError

    def _order(self, grid: list[int]) -> Tensor | None:
        """Return the token that each row of the merger is, where they are not in order."""
        return None

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the weights, and copy the merger's."""
        loaded: set[str] = super().load_weights(self.chooser.copy.listening(weights))  # type: ignore[misc]
        vision = self.config.vision_config
        self.chooser.prove(vision.hidden_size * vision.spatial_merge_size**2, vision.out_hidden_size)
        return loaded

    def embed_multimodal(self, **kwargs: Any) -> tuple[Tensor, ...]:
        """Return the kept rows of each image and all rows of each video, each row with its place behind it."""
        asks = taken_asks(kwargs)
        found: list[Tensor] = []
        for modality, given in self._parse_and_validate_multimodal_inputs(**kwargs).items():
            if modality == "image":
                found += self._images(given["pixel_values"], given["image_grid_thw"].tolist(), asks)
            else:
                # The positions of videos are right from the start, so nobody reads their places.
                videos = self._process_video_input(given)
                found += [torch.cat([rows, rows.new_zeros(len(rows), COLUMNS)], dim=1) for rows in videos]
        return tuple(found)

    def _images(self, pixels: Tensor, grids: list[list[int]], asks: Sequence[Ask]) -> list[Tensor]:
        merge = self.config.vision_config.spatial_merge_size
        patches = [frames * rows * columns for frames, rows, columns in grids]
        images = list(zip(pixels.split(patches), grids, strict=True))
        found = []
        for portion, some in parts(images, asks, at_once(self._vllm_config, max(patches) // merge**2)):
            shapes = [grid for _, grid in portion]
            encoded = self.visual(torch.cat([image for image, _ in portion]), grid_thw=shapes)
            read = self.visual.merger.read.reshape(len(encoded), -1)
            sizes = [frames * rows * columns // merge**2 for frames, rows, columns in shapes]
            for x, rows, grid, ask in zip(read.split(sizes), encoded.split(sizes), shapes, some, strict=True):
                found.append(self._kept(x, rows, grid, ask))
        self.visual.merger.read = None
        return found

    def _kept(self, features: Tensor, rows: Tensor, grid: list[int], ask: Ask) -> Tensor:
        merge, width = self.config.vision_config.spatial_merge_size, self.config.vision_config.out_hidden_size
        order = self._order(grid)
        if order is not None:
            features = features[order.argsort().to(features.device)]
        frames, height, breadth = grid
        places = grid_positions(height // merge, breadth // merge, frames=frames, device=rows.device)
        tokens = VisualTokens(features, rows[:, :width], self.chooser.copy.projector, places)
        chosen = self.chooser.choose(Visual.plain(tokens), rows, ask)
        return with_places(chosen.rows, places[chosen.slots.to(places.device)][:, [0, 2, 3]])


@MULTIMODAL_REGISTRY.register_processor(Qwen2_5Processor, info=Qwen2_5Info, dummy_inputs=Qwen2_5_VLDummyInputsBuilder)
class PrunedQwen2_5_VL(_PrunedQwen, Qwen2_5_VLForConditionalGeneration):  # noqa: N801
    """vLLM's model, which encodes all of an image and gives the language model a part of it."""

    def _copy(self) -> ProjectorCopy:
        vision = self.config.vision_config
        merger = Qwen2_5_VLPatchMerger(vision.out_hidden_size, vision.hidden_size, vision.spatial_merge_size)
        return ProjectorCopy(merger, _MERGER, Qwen2VL().tail)

    def _order(self, grid: list[int]) -> Tensor | None:
        """Return the tokens window by window, as the merger reads them."""
        order: Tensor = self.visual.get_window_index_thw(*grid)[0]
        return order


@MULTIMODAL_REGISTRY.register_processor(Qwen3Processor, info=Qwen3Info, dummy_inputs=Qwen3VLDummyInputsBuilder)
class PrunedQwen3VL(_PrunedQwen, Qwen3VLForConditionalGeneration):
    """vLLM's model, which encodes all of an image and gives the language model a part of it."""

    def _copy(self) -> ProjectorCopy:
        return ProjectorCopy(Qwen3VLVisionPatchMerger(self.config.vision_config), _MERGER, Qwen3VL().tail)
