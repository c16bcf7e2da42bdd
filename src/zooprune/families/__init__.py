"""Model families, one file each."""

from __future__ import annotations

from transformers import PreTrainedModel

from zooprune.families.base import Encoded, Family
from zooprune.families.llava import Llava

FAMILIES: tuple[Family, ...] = (Llava(),)


def find_family(model: PreTrainedModel) -> Family:
    """Return the family of a model.

    Raises
    ------
    TypeError
        If `model` is not a transformers model.
    ValueError
        If no family serves its class.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a transformers model, got {type(model).__name__}")
    # A subclass builds its prompts like its parent.
    names = {parent.__name__ for parent in type(model).__mro__}
    for family in FAMILIES:
        if family.architecture in names:
            return family
    supported = ", ".join(family.architecture for family in FAMILIES)
    if not hasattr(model.config, "vision_config"):
        raise ValueError(f"{type(model).__name__} has no vision tower, so there is nothing to prune; use {supported}")
    raise ValueError(f"{type(model).__name__} is not supported yet; supported: {supported}")


__all__ = ["FAMILIES", "Encoded", "Family", "find_family"]
