"""Copies of modules for working things out beside a model, whose own modules are never changed, not even for a moment.

A copy shares its tensors with the module wherever they need no conversion. It has no hooks that watch, is not compiled,
and is out of training mode.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zooprune.offloading import device_of, fetched, is_offloaded, weights_map

Convert = Callable[[Tensor], Tensor]
#: What only watches or comes after; pre-hooks stay, since some work out a weight.
_WATCHING = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_hooks",
             "_backward_pre_hooks")  # fmt: skip


def is_plain(weight: object) -> bool:
    """Return whether a weight is the floating-point matrix itself and not, say, a packed or absent form of it."""
    return (
        type(weight) in (Tensor, nn.Parameter)
        and weight.ndim == 2  # type: ignore[attr-defined]
        and weight.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # type: ignore[attr-defined]
        and not weight.is_meta  # type: ignore[attr-defined]
    )


def to_float32(value: Tensor) -> Tensor:
    """Return a tensor in float32 if it stands for floating-point numbers, else as it is."""
    value = value.detach()
    if type(value) is not Tensor and hasattr(value, "__tensor_flatten__") and hasattr(value, "dequantize"):
        try:
            # In float32 from the start: the product of a code and its scale has more digits than half precision.
            value = value.dequantize(torch.float32)  # type: ignore[call-arg]
        except TypeError:
            value = value.dequantize()
    return value.float() if value.is_floating_point() else value


def copied(module: nn.Module, convert: Convert) -> nn.Module | None:
    """Return a copy with `convert` applied to every parameter and buffer, or None if there is no telling what it runs.

    That is so where somebody has put another ``forward`` on a module, unless it only moves weights.
    """
    device = device_of(module) if is_offloaded(module) else None
    try:
        return _copied(module, convert, device)
    except _ReplacedError:
        return None


class _ReplacedError(Exception):
    """A module's forward is not that of its class."""


def _copied(module: nn.Module, convert: Convert, device: torch.device | None) -> nn.Module:
    inner = module._modules.get("_orig_mod")
    if inner is not None:
        # What torch.compile made of it.
        return _copied(inner, convert, device)
    own: dict[str, Any] = dict(vars(module))
    if "forward" in own:
        before = getattr(own.get("_old_forward"), "__func__", None)
        if "_hf_hook" not in own or before is not type(module).forward:
            raise _ReplacedError
        for name in ("forward", "_old_forward", "_hf_hook"):
            del own[name]
    own.pop("_compiled_call_impl", None)
    kept = weights_map(module)

    def taken(name: str, value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        value = fetched(kept, name, value)
        return convert(value if device is None else value.to(device))

    own["_parameters"] = {name: taken(name, value) for name, value in module._parameters.items()}
    own["_buffers"] = {name: taken(name, value) for name, value in module._buffers.items()}
    own["_modules"] = {
        name: None if child is None else _copied(child, convert, device) for name, child in module._modules.items()
    }
    own |= {name: OrderedDict() for name in _WATCHING}
    own["training"] = False
    copy: nn.Module = type(module).__new__(type(module))
    vars(copy).update(own)
    return copy
