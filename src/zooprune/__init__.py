"""zooprune: fast vision-language models, by dropping the visual tokens they do not need."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from zooprune import selection, sensitivity
    from zooprune.bundled import load_bundled
    from zooprune.generation import prune
    from zooprune.pruners import ZooPrune, get_pruner, list_pruners

# Loaded on first use, so that importing the package stays quick.
_HOME = {
    "prune": "zooprune.generation",
    "ZooPrune": "zooprune.pruners",
    "get_pruner": "zooprune.pruners",
    "list_pruners": "zooprune.pruners",
    "load_bundled": "zooprune.bundled",
}
_MODULES = ("selection", "sensitivity")

__all__ = ["ZooPrune", "get_pruner", "list_pruners", "load_bundled", "prune", "selection", "sensitivity"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"zooprune.{name}")
    raise AttributeError(f"module 'zooprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
