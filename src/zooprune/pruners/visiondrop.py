"""VisionDrop: its stage in front of the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from zooprune.pruners.visionzip import VisionZip


@dataclass(frozen=True)
class VisionDrop(VisionZip):
    """Keep the tokens that receive most attention in the vision tower, and merge the others into a few more.

    This is the part of VisionDrop in front of the language model: dominant and contextual tokens as in VisionZip, with
    a smaller share of contextual tokens. Published figures include its further stages inside the language model, where
    image tokens rank each other. Those are left out here.

    Source: "Rethinking Visual Token Reduction in LVLMs under Cross-Modal Misalignment" (VisionDrop), arXiv 2506.22283,
    AAAI 2026.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them, dominant and contextual ones together.
    contextual : float
        The share of kept tokens that are contextual, in [0, 1): 6 of 48, as released.
    """

    name: ClassVar[str] = "visiondrop"
    source: ClassVar[str] = "VisionDrop, arXiv 2506.22283, stage 0"

    contextual: float = 6 / 48
