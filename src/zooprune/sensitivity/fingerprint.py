"""What tells a module's weights and settings from their earlier selves, read at every call as fast as memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zooprune.offloading import own_tensors

#: Words of 64 bits in a row, a prime, so that no row of weights is a multiple of it; and rows that are added up first.
_WIDTH, _DEPTH = 2039, 16
#: What every module has beside its own settings. Hooks come and go with every call that somebody records, and copies
#: are out of training mode whatever the module is in.
_COMMON = frozenset(vars(nn.Module()))
_unlike = itertools.count()


def fingerprint(module: nn.Module) -> tuple[Any, ...]:
    """Return a value that equals an earlier one as long as neither weights nor settings changed.

    Weights are compared by their contents, their order included: neither address nor version changes when ``.data`` is
    written to, and a freed address may be used again. Settings are the plain attributes of every layer, such as the
    adapters that are switched on. Weights that accelerate has moved away are read where they are kept.
    """
    marks: list[Any] = []
    sums: list[Tensor] = []
    for layer in module.modules():
        marks.append((id(layer), type(layer)))
        for _, value in own_tensors(layer):
            for part in _parts(value):
                marks.append((part.dtype, part.device))
                sums.append(_sums(part))
        for name, setting in list(vars(layer).items()):
            if isinstance(setting, Tensor):
                sums += map(_sums, _parts(setting))
            elif name not in _COMMON:
                marks.append((name, _setting(setting)))
    # Brought together on one device, so that the host waits for it once.
    return (marks, torch.stack([both.to(sums[0].device) for both in sums]).tolist() if sums else [])


def _parts(value: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors of which a tensor is made: a quantised one has its scales beside it."""
    value = value.detach()
    if value.is_meta:
        # Nobody knows what it holds, so it never looks like anything seen before.
        yield torch.tensor(next(_unlike))
    elif hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            inner = getattr(value, name)
            if inner is not None:
                yield from _parts(inner)
    elif value.is_quantized or value.layout != torch.strided:
        yield value.dequantize() if value.is_quantized else value.to_dense()
    else:
        yield value.as_subclass(Tensor)


def _setting(value: Any, depth: int = 3) -> Any:
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return value
    if isinstance(value, torch.ScriptObject):
        return _Same(value)
    if depth and isinstance(value, Mapping):
        return tuple((_setting(key, 0), _setting(held, depth - 1)) for key, held in list(value.items()))
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return tuple(_setting(held, depth - 1) for held in list(value))
    return id(value)


class _Same:
    """Equal to the very same object alone, which it holds: its address cannot be used again."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    __hash__ = None  # type: ignore[assignment]


def _sums(value: Tensor) -> Tensor:
    """Return two sums of a tensor's bits, int64 (2,), which any single change and nearly any move changes.

    The bits are taken as 64-bit words in a table. One sum counts every row of it by its place, the other every column,
    both with odd factors and modulo 2^64. Rows are added up in groups first, which is as fast as memory.
    """
    octets = value.contiguous().view(-1).view(torch.uint8)
    if octets.storage_offset() % 8:
        octets = octets.clone()
    whole = len(octets) // 8 * 8
    words = octets[:whole].view(torch.int64)
    filled = len(words) // (_WIDTH * _DEPTH) * (_WIDTH * _DEPTH)
    rest = torch.cat([words[filled:], octets[whole:].long()])
    found = (rest * _odd(rest)).sum().expand(2)
    if filled:
        table = words[:filled].view(-1, _DEPTH, _WIDTH).sum(1)
        found = found + torch.stack([(table.sum(1) * _odd(table)).sum(), (table.sum(0) * _odd(table[0])).sum()])
    return found


def _odd(values: Tensor) -> Tensor:
    return 2 * torch.arange(len(values), device=values.device) + 1
