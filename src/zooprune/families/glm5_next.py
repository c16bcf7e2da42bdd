"""GLM-5 Next: GLM-4V's tower, with positions that follow the text's order."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zooprune.families.gridded import Gridded
from zooprune.visuals import Modality


class Glm5Next(Gridded):
    """``Glm5NextForConditionalGeneration``. One placeholder serves both; that of a video stands between two marks."""

    architectures = ("Glm5NextForConditionalGeneration",)
    title = "GLM-5 Next"
    unthinned = architectures
    sensitivity = "sampled"

    def merger(self, model: Any) -> nn.Module:
        """Return the last module of the tower, which works token by token as it is."""
        module: nn.Module = model.model.visual.merger
        return module

    def slots(self, model: Any, modality: Modality, input_ids: Tensor) -> Tensor:
        """Return the placeholders inside, or outside, the marks of a video."""
        config = model.config
        begun = (input_ids == config.video_start_token_id).cumsum(-1)
        ended = (input_ids == config.video_end_token_id).cumsum(-1)
        inside = begun > ended
        return (input_ids == config.image_token_id) & (inside if modality == "video" else ~inside)
