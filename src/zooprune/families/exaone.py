"""EXAONE 4.5: Qwen2.5-VL's tower and merger, with positions that follow the text's order."""

from __future__ import annotations

from typing import Any

from torch import nn

from zooprune.families.gridded import Gridded
from zooprune.families.qwen_vl import two_layers


class Exaone(Gridded):
    """``Exaone4_5_ForConditionalGeneration``."""

    architectures = ("Exaone4_5_ForConditionalGeneration",)
    title = "EXAONE 4.5"
    takes_positions = False

    def merger(self, model: Any) -> nn.Module:
        """Return the last module of the tower."""
        module: nn.Module = model.model.visual.merger
        return module

    def tail(self, projector: Any) -> nn.Module:
        """Return the merger as norm, layer, activation, layer."""
        return two_layers(projector)
