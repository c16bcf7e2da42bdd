"""A device that is none: a CPU that complains about what a GPU would, and counts how often the host waits for it.

Inside `PretendDevice`, tensors on "pretended" are wrappers around CPU tensors. An operation that mixes them with
tensors of the CPU raises, as it would on a GPU, and reading one of their values counts as a wait.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from zoo_of_models import CASES
from zooprune import ZooPrune, get_pruner, list_pruners, prune
from zooprune.families import Family, find_family
from zooprune.pruners import Pruner
from zooprune.signals import find_signal
from zooprune.tokens import VisualTokens


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


#: As it is called before `main` names it "pretended".
DEVICE = torch.device("privateuseone", 0)
_ATEN = torch.ops.aten
#: What takes tensors of two devices, on a GPU too.
_BETWEEN = {_ATEN.copy_.default, _ATEN._to_copy.default, _ATEN.index.Tensor, _ATEN.index_put_.default,
            _ATEN.index_put.default}  # fmt: skip
#: What a GPU can only answer when all that was asked before is done: the size of the result, or a value.
_WAITS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave.Tensor", "aten::bincount",
}  # fmt: skip


class OnDevice(Tensor):
    """A tensor of the pretended device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"{DEVICE.type} {self.inner!r}"

    def tolist(self) -> Any:
        """Return the values, which a subclass has to do by itself."""
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        """Return where the values are."""
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with PretendDevice():
            return func(*args, **(kwargs or {}))


class _Literals(TorchFunctionMode):
    """Make tensors from Python's numbers, which does not pass the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == DEVICE.type:
            return OnDevice(func(*tree_map(_inner, args), **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


class PretendDevice(TorchDispatchMode):
    """While it is entered, the device exists.

    Attributes
    ----------
    waits : list of str
        Where the host waited, the innermost line of the library last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._literals = _Literals()

    def __enter__(self) -> PretendDevice:
        self._literals.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._literals.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = any(isinstance(leaf, OnDevice) for leaf in leaves)
        target = kwargs.get("device")
        target = None if target is None else torch.device(target)
        if target is None and here and func is not _ATEN.copy_.default:
            target = DEVICE
        if not here and (target is None or target.type != DEVICE.type):
            return func(*args, **kwargs)
        if here and func not in _BETWEEN:
            strangers = [leaf for leaf in leaves if not isinstance(leaf, OnDevice) and leaf.ndim > 0]
            if strangers:
                raise RuntimeError(f"{func} mixes devices, with {tuple(strangers[0].shape)} on the CPU")
        self._look(func, args, target)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
        wrappers = {id(leaf.inner): leaf for leaf in leaves if isinstance(leaf, OnDevice)}
        given = {id(leaf): leaf for leaf in leaves}
        out = func(*inner_args, **inner_kwargs)

        def back(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in wrappers:
                return wrappers[id(value)]
            if id(value) in given or target is None or target.type != DEVICE.type:
                return value
            return OnDevice(value)

        return tree_map(back, out)

    def _look(self, func: Any, args: Any, target: torch.device | None) -> None:
        """Refuse what no GPU does, and note what it waits for."""
        name = func.name()
        waits = name in _WAITS
        if func in (_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default):
            tensors = [index for index in args[1] if index is not None]
            if not isinstance(args[0], OnDevice) and any(isinstance(index, OnDevice) for index in tensors):
                raise RuntimeError(f"{func} looks up a CPU tensor by indices on a device")
            waits = any(isinstance(index, OnDevice) and index.dtype == torch.bool for index in tensors)
        if func is _ATEN._to_copy.default and isinstance(args[0], OnDevice):
            waits = target is not None and target.type == "cpu"
        if func is _ATEN.copy_.default:
            waits = isinstance(args[1], OnDevice) and not isinstance(args[0], OnDevice)
        if waits:
            lines = [frame for frame in traceback.extract_stack() if "/zooprune/" in frame.filename]
            places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in lines]
            self.waits.append(" ".join([*places[-2:], name]))


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


def on_device(value: Any) -> Any:
    """Return a tensor, a model or a mapping of tensors on the device; models are moved in place."""
    if isinstance(value, nn.Module):
        for module in value.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(on_device(parameter.detach()), requires_grad=False)
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = on_device(buffer)
        return value
    if isinstance(value, Mapping):
        return {name: on_device(one) for name, one in value.items()}
    return OnDevice(value) if isinstance(value, Tensor) else value


def on_host(value: Tensor) -> Tensor:
    """Return the CPU tensor that the device's tensor stands for."""
    return value.inner if isinstance(value, OnDevice) else value


def _reading_all(family: Family, **options: Any) -> Pruner:
    """Return ZOO-Prune with scores in which all takes part that any method reads and the family gives."""
    names = dict.fromkeys(name for method in list_pruners() for name in get_pruner(method).reads())
    given = tuple(name for name in names if family.gives(find_signal(name)))

    class ReadsAll(ZooPrune):
        def reads(self) -> tuple[str, ...]:
            return given

        def score(self, tokens: VisualTokens) -> Tensor:
            seen = [tokens.signals[name].float().mean(-1) for name in given if name in tokens.signals]
            asked = [tokens.embeddings @ tokens.context[name].mean(0) for name in given if name in tokens.context]
            return torch.stack([super().score(tokens), *seen, *asked]).sum(0)

    return ReadsAll(**options)


def _compared(family: str, method: str | None = "zoo", **policies: Any) -> dict[str, Any]:
    """Prune one family's tiny model on the CPU and on the device, twice; say what differs and where the host waited.

    Without a method, one that reads all that the family gives.
    """
    case = CASES[family]
    drawn = case.make(case.model(), [[0, case.kinds - 1], [], [0]])
    options: dict[str, Any] = {"keep": 5}
    if method in ("zoo", None) and find_family(case.model()).sensitivity == "sampled":
        # Forward-mode differentiation, which it would be, does not follow wrapped tensors.
        options |= {"estimator": "finite_difference", "directions": 4}
    pruner = get_pruner(method, **options) if method else _reading_all(find_family(case.model()), **options)
    calls = []
    for place in (lambda value: value, on_device):
        model, inputs = place(case.model()), place(drawn)
        with PretendDevice() as device, prune(model, pruner, **policies) as session:
            session.prepare(inputs)
            device.waits.clear()
            calls.append((session.prepare(inputs), session.reports[-1]))
    (here, report), (there, other) = calls
    return {
        "devices": sorted({value.device.type for value in there.values() if isinstance(value, Tensor)}),
        "same prompts": all(
            torch.equal(on_host(there[key]), value) for key, value in here.items() if isinstance(value, Tensor)
        ),
        "same tokens": all(
            torch.equal(mine.selection.index, its.selection.index)
            for mine, its in zip(report.images, other.images, strict=True)
        ),
        "same rows": torch.allclose(_rows(there), _rows(here), rtol=1e-4, atol=1e-4),
        "waits": device.waits,
    }


def _rows(prepared: Mapping[str, Any]) -> Tensor:
    """Return all rows that the language model is to read of images."""
    (output,) = prepared["mm_encoder_outputs"].values()
    return torch.cat([on_host(part).flatten(0, -2) for part in output.pooler_output])


#: What is compared: every family with all that methods read, every method, and the ways to spend a budget.
COMPARED: dict[str, dict[str, Any]] = {
    **{family: {"family": family, "method": None} for family in CASES},
    "llava, zoo": {"family": "llava"},
    **{
        f"llava, {method}": {"family": "llava", "method": method}
        for method in list_pruners("before the language model")
        if method != "zoo"
    },
    "by tile": {"family": "llava_next", "scope": "tile", "newlines": "rows"},
    "by prompt": {"family": "llava_next", "scope": "prompt", "newlines": "keep"},
    "original positions": {"family": "llava", "positions": "original"},
    "standing in": {"family": "llava", "dropped": "stand in"},
    "standing in, by prompt": {"family": "qwen3_vl", "dropped": "stand in", "scope": "prompt"},
}


def main() -> None:
    """Print as JSON what came of all that is compared."""
    _setup_privateuseone_for_python_backend("pretended", _Module())
    found: dict[str, Any] = {}
    for name, arguments in COMPARED.items():
        try:
            found[name] = _compared(**arguments)
        except Exception:
            found[name] = {"error": traceback.format_exc()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
