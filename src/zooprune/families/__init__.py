"""Model families, one file each."""

from __future__ import annotations

import inspect

from transformers import PreTrainedModel

from zooprune.families.aya_vision import AyaVision
from zooprune.families.base import Encoded, Family, Modality, Visual
from zooprune.families.gemma3 import Gemma3
from zooprune.families.generic import Generic, find_projector
from zooprune.families.idefics3 import Idefics3
from zooprune.families.internvl import InternVL
from zooprune.families.llava import Llava
from zooprune.families.llava_next import LlavaNext
from zooprune.families.llava_next_video import LlavaNextVideo
from zooprune.families.llava_onevision import LlavaOnevision
from zooprune.families.mistral3 import Mistral3
from zooprune.families.paligemma import PaliGemma
from zooprune.families.qwen_vl import Glm4v, Qwen2VL, Qwen3VL
from zooprune.families.vipllava import VipLlava

FAMILIES: tuple[Family, ...] = (
    Llava(), VipLlava(), LlavaNext(), LlavaNextVideo(), LlavaOnevision(), Qwen2VL(), Qwen3VL(), Glm4v(), InternVL(),
    Gemma3(), PaliGemma(), Idefics3(), Mistral3(), AyaVision(),
)  # fmt: skip
_GENERIC = Generic()


def find_family(model: PreTrainedModel) -> Family:
    """Return the family of a model.

    Raises
    ------
    TypeError
        If `model` is not a transformers model.
    ValueError
        If no family serves its class and it lacks what the generic one needs; the message says what.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a transformers model, got {type(model).__name__}")
    # A subclass builds its prompts like its parent.
    names = {parent.__name__ for parent in type(model).__mro__}
    for family in FAMILIES:
        if names.intersection(family.architectures):
            return family
    kind = type(model).__name__
    if not hasattr(model.config, "vision_config"):
        raise ValueError(f"{kind} has no vision tower, so there is nothing to prune; see: zooprune models")
    missing = []
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        missing.append("a forward pass that takes mm_encoder_outputs")
    if not hasattr(getattr(model, "model", None), "get_image_features"):
        missing.append("get_image_features")
    elif find_projector(model) is None:
        missing.append("a projector in a usual place")
    if missing:
        raise ValueError(f"{kind} is not supported, it lacks {' and '.join(missing)}; see: zooprune models")
    return _GENERIC


__all__ = ["FAMILIES", "Encoded", "Family", "Modality", "Visual", "find_family"]
