"""DeepSeek-VL: one tile, one tower or two, and an aligner of two layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zooprune.families.base import Family
from zooprune.families.tiling import pooled, square_tiles
from zooprune.signals import TowerSignal
from zooprune.visuals import Encoded, Modality, Visual


class DeepseekVL(Family):
    """``DeepseekVLForConditionalGeneration``."""

    architectures = ("DeepseekVLForConditionalGeneration",)
    title = "DeepSeek-VL"
    tower = "vision_model"
    image_arguments = ("pixel_values",)

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the images."""
        aligner = model.model.aligner
        modules = {"projector": aligner, "first layer": aligner.linear1}
        output, seen, patches = self.forward(model, modality, inputs, modules, signals)
        embeddings = output.pooler_output
        given = {"first_layer": seen["first layer"].gave} | pooled(patches, embeddings.shape[1])
        images = square_tiles(seen["projector"].read, embeddings, aligner, given)
        return Encoded([Visual.plain(image) for image in images], output)


class DeepseekVLHybrid(Family):
    """``DeepseekVLHybridForConditionalGeneration``: a second tower sees more pixels; a token has features of both."""

    architectures = ("DeepseekVLHybridForConditionalGeneration",)
    title = "DeepSeek-VL hybrid"
    sensitivity = "sampled"
    tower = "vision_model"
    image_arguments = ("pixel_values", "high_res_pixel_values")

    def tail(self, projector: Any) -> nn.Module:
        """Return the aligner as a map of the features of both towers, side by side."""
        return SideBySide(projector)

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the images with both towers; signals are those of the first."""
        aligner = model.model.aligner
        modules = {"low": aligner.vision_proj, "high": aligner.high_res_vision_proj}
        output, seen, patches = self.forward(model, modality, inputs, modules, signals)
        embeddings = output.pooler_output
        features = torch.cat([seen["low"].read, seen["high"].read], dim=-1)
        given = pooled(patches, embeddings.shape[1])
        images = square_tiles(features, embeddings, self.token_wise(aligner), given)
        return Encoded([Visual.plain(image) for image in images], output)


class SideBySide(nn.Module):
    """An aligner of two inputs as a map of one.

    Parameters
    ----------
    aligner : torch.nn.Module
    """

    def __init__(self, aligner: Any) -> None:
        super().__init__()
        self.aligner = aligner

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d_low + d_high) to (..., d_text)."""
        low = self.aligner.vision_proj.in_features
        embeddings: Tensor = self.aligner(x[..., :low], x[..., low:])
        return embeddings
