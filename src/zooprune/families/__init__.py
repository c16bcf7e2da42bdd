"""Model families, one file each. A family knows one kind of model, and no method."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module

from transformers import PreTrainedModel

from zooprune.families.base import Family
from zooprune.families.generic import Generic, lacking


def _families() -> tuple[Family, ...]:
    """Return an instance of every family in this folder; a new one needs its file and nothing else."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        members = vars(import_module(f"{__name__}.{module.name}")).values()
        found += [
            member()
            for member in members
            # The module comes first: Python 3.10 takes list[int] for a class, but not for a subclass of any.
            if inspect.isclass(member) and member.__module__.endswith(f".{module.name}") and issubclass(member, Family)
            if not inspect.isabstract(member) and member is not Generic
        ]
    return tuple(found)


#: All families, by the names of their files.
FAMILIES = _families()
_GENERIC = Generic()


def find_family(model: PreTrainedModel) -> Family:
    """Return the family of a model.

    Raises
    ------
    TypeError
        If `model` is not a transformers model; the message says what to pass where it wraps one.
    ValueError
        If no family serves its class and it lacks what the generic one needs; the message says what.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a transformers model, got {type(model).__name__}{_wrapped(model)}")
    # A subclass builds its prompts like its parent.
    names = {parent.__name__ for parent in type(model).__mro__}
    for family in FAMILIES:
        if names.intersection(family.architectures):
            return family
    kind = type(model).__name__
    if not hasattr(model.config, "vision_config"):
        raise ValueError(f"{kind} has no vision tower, so there is nothing to prune; see: zooprune models")
    missing = lacking(model)
    if missing:
        raise ValueError(f"{kind} is not supported, it lacks {' and '.join(missing)}; see: zooprune models")
    return _GENERIC


def _wrapped(model: object) -> str:
    """Return how to prune what another object wraps, to end a sentence with; nothing if it wraps no model."""
    # Known by what they are made of, so that none of their packages need be there. The base model of a PeftModel
    # answers for its own `generate`, which the wrapper's calls.
    wrappers = {"get_base_model": "get_base_model()", "_orig_mod": "_orig_mod", "module": "module"}
    for name, path in wrappers.items():
        inner = getattr(model, name, None)
        inner = inner() if name == "get_base_model" and callable(inner) else inner
        if isinstance(inner, PreTrainedModel):
            calls = f"calls through the {type(model).__name__} are then pruned as well"
            return f"; prune what it wraps, prune(model.{path}, ...): {calls}"
    return ""


__all__ = ["FAMILIES", "Family", "find_family"]
