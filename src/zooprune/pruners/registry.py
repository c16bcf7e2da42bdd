"""The methods that are known by name, our own and those other packages bring."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import warnings
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from zooprune.pruners.base import Pruner, Where
from zooprune.pruners.inside import InsidePruner

#: Other packages name their pruner classes under this entry-point group.
ENTRY_POINTS = "zooprune.pruners"
_known: dict[str, type[Pruner]] = {}


def register(method: type[Pruner]) -> type[Pruner]:
    """Make a method known by its name; usable as a class decorator.

    Raises
    ------
    TypeError
        If it is not a frozen dataclass derived from `Pruner`, lacks a name or a source, has neither `score` nor
        `select` of its own (`score_at`, if it prunes inside the language model), or its `select` does not take the
        number of tokens to keep.
    ValueError
        If the name is taken.
    """
    if not (isinstance(method, type) and issubclass(method, Pruner)):
        raise TypeError(f"{method!r} is not a subclass of zooprune.pruners.Pruner")
    if "__dataclass_params__" not in vars(method) or not method.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"{method.__name__} must be decorated with @dataclass(frozen=True)")
    if not all(isinstance(getattr(method, field, None), str) for field in ("name", "source")):
        raise TypeError(f"{method.__name__} needs the class attributes name and source")
    if issubclass(method, InsidePruner) and method.score_at is InsidePruner.score_at:
        raise TypeError(f"{method.__name__} must define score_at()")
    if method.score is Pruner.score and method.select is Pruner.select:
        raise TypeError(f"{method.__name__} must define score() or select()")
    if list(inspect.signature(method.select).parameters)[2:3] != ["keep"]:
        raise TypeError(f"{method.__name__}.select must be select(self, tokens, keep)")
    if _known.setdefault(method.name, method) is not method:
        raise ValueError(f"a pruner named {method.name!r} is already registered; choose another name")
    return method


@cache
def _load_plugins() -> None:
    for entry in entry_points(group=ENTRY_POINTS):
        # Whatever goes wrong in somebody else's package, the other methods stay usable.
        try:
            register(entry.load())
        except Exception as error:
            warnings.warn(f"the pruner {entry.name!r} of another package is left out: {error}", stacklevel=3)


def list_pruners(where: Where | None = None) -> tuple[str, ...]:
    """Return the names of all methods, in the order they were registered.

    Parameters
    ----------
    where : {"before the language model", "inside the language model"}, optional
        Only of those that prune there.
    """
    _load_plugins()
    return tuple(name for name, method in _known.items() if where in (None, method.where))


def pruner_class(name: str) -> type[Pruner]:
    """Return the class of a method.

    Raises
    ------
    ValueError
        If there is no method of that name.
    """
    _load_plugins()
    if name not in _known:
        close = difflib.get_close_matches(name, _known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown method {name!r}; {hint}choose one of {', '.join(_known)}")
    return _known[name]


def get_pruner(name: str, **options: Any) -> Pruner:
    """Return a configured method.

    Parameters
    ----------
    name : str
        One of `list_pruners`.
    **options
        Its fields, `keep` first of all.

    Raises
    ------
    ValueError
        If the name or a value is not valid.
    TypeError
        If the method has no such option.
    """
    method = pruner_class(name)
    fields = [field.name for field in dataclasses.fields(method)]
    unknown = sorted(set(options) - set(fields))
    if unknown:
        raise TypeError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(fields)}")
    return method(**options)
