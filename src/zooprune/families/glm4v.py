"""GLM-4.1V to GLM-4.6V: built like Qwen's, but a convolution merges the patches and the projector is gated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from zooprune.families.qwen_vl import Qwen2VL
from zooprune.visuals import Modality


class Glm4v(Qwen2VL):
    """``Glm4v`` (GLM-4.1V), ``Glm4vMoe`` (GLM-4.5V) and ``Glm46VForConditionalGeneration``.

    Frames of a video stand under the placeholder of images, so a call holds either images or videos: given both, the
    model itself could not tell whose features go where.
    """

    architectures = (
        "Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration", "Glm46VForConditionalGeneration",
    )  # fmt: skip
    title = "GLM-4.1V, GLM-4.5V, GLM-4.6V"
    sensitivity = "sampled"

    def tail(self, projector: Any) -> nn.Module:
        """Return the merger, which works token by token as it is."""
        return projector

    def present(self, inputs: Mapping[str, Any]) -> list[Modality]:
        """Return what there is among `inputs`, and refuse images beside videos."""
        present = super().present(inputs)
        if len(present) > 1:
            raise ValueError("GLM-4V cannot tell images from videos in one call; pass either images or videos")
        return present

    def placeholder(self, modality: Modality) -> Modality:
        """Return the one name under which prompts have both."""
        return "image"
