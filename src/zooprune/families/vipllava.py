"""ViP-LLaVA: LLaVA that reads several layers of its tower, with a norm in front of the projector."""

from __future__ import annotations

from typing import Any

from torch import nn

from zooprune.families.llava import Llava
from zooprune.projectors import NormedMLP


class VipLlava(Llava):
    """``VipLlavaForConditionalGeneration``."""

    architectures = ("VipLlavaForConditionalGeneration",)
    title = "ViP-LLaVA"
    image_arguments = ("pixel_values", "vision_feature_layer")

    def tail(self, projector: Any) -> nn.Module:
        """Return the projector as norm, layer, activation, layer."""
        return NormedMLP(projector.projector_layernorm, projector.linear_1, projector.act, projector.linear_2)
