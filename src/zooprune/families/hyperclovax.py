"""HyperCLOVA X Vision v2: Qwen2.5-VL's tower, merger included, and one linear layer for a projector."""

from __future__ import annotations

from typing import Any

from torch import nn

from zooprune.families.gridded import Gridded


class HyperClovaX(Gridded):
    """``HyperCLOVAXVisionV2ForConditionalGeneration``."""

    architectures = ("HyperCLOVAXVisionV2ForConditionalGeneration",)
    title = "HyperCLOVA X Vision v2"
    sensitivity = "linear"
    tower = "vision_model"
    takes_positions = False
    # The tower works in the order of its windows, which its last module, ahead of the projector, undoes.
    gives_tower_signals = False

    def merger(self, model: Any) -> nn.Module:
        """Return the projector."""
        module: nn.Module = model.model.projector
        return module
