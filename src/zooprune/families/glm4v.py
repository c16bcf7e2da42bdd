"""GLM-4.1V and GLM-4.5V: built like Qwen's, but a convolution merges the patches and the projector is gated."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from zooprune.families.qwen_vl import Qwen2VL


class Glm4v(Qwen2VL):
    """``Glm4vForConditionalGeneration`` (GLM-4.1V) and ``Glm4vMoeForConditionalGeneration`` (GLM-4.5V).

    A convolution merges the patches before the projector, which is gated.
    """

    architectures = ("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration")
    title = "GLM-4.1V, GLM-4.5V"
    sensitivity = "sampled"
    # Frames of a video stand under the images' own placeholder, which is not told apart here.
    video_arguments: ClassVar[tuple[str, ...]] = ()

    def tail(self, projector: Any) -> nn.Module:
        """Return the merger, which works token by token as it is."""
        return projector
