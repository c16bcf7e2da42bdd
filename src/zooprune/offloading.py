"""Weights that accelerate keeps elsewhere between calls. Knows modules and hooks, and nothing built on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def is_offloaded(module: nn.Module) -> bool:
    """Return whether accelerate keeps weights of the module or of a part of it elsewhere between calls."""
    return any(weights_map(layer) is not None for layer in module.modules())


def own_tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a layer's own parameters and buffers by name; those that accelerate has moved away from where they are."""
    kept = weights_map(layer)
    for name, value in [*layer._parameters.items(), *layer._buffers.items()]:
        if value is not None:
            yield name, fetched(kept, name, value)


def device_of(module: nn.Module) -> torch.device:
    """Return where a module computes."""
    for layer in module.modules():
        for hook in _hooks(layer):
            device = getattr(hook, "execution_device", None)
            if device is not None and weights_map(layer) is not None:
                return torch.device(device)
    tensors = [*module.parameters(), *module.buffers()]
    return next((value.device for value in tensors if not value.is_meta), torch.device("cpu"))


def _hooks(layer: nn.Module) -> list[Any]:
    hook = vars(layer).get("_hf_hook")
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def weights_map(layer: nn.Module) -> Any:
    """Return where accelerate keeps a layer's weights, by name; None if they are where they belong."""
    maps = (getattr(hook, "weights_map", None) for hook in _hooks(layer))
    return next((kept for kept in maps if kept is not None), None)


def fetched(kept: Any, name: str, value: Tensor) -> Tensor:
    """Return a tensor of a layer, given what `weights_map` returned for it."""
    if kept is None:
        return value
    try:
        found: Tensor = kept[name]
    except KeyError:
        # Buffers usually stay.
        return value
    return found
