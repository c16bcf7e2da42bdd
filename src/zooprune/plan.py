"""How to prune one model, as a small JSON file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from zooprune.budgeting import Newlines, Scope
from zooprune.families.base import Positions
from zooprune.files import write_text
from zooprune.pruners import Pruner, get_pruner

#: The version of the file's layout.
VERSION = 1


@dataclass(frozen=True)
class Plan:
    """A method with its budget and policies, and what is known about their answers.

    Parameters
    ----------
    model : str
        The model it was found for: "bundled", a folder or a hub id.
    method : str
    keep : int or float
        Visual tokens per image, or a share of them.
    options : dict
        Further fields of the method.
    positions, scope, newlines : str
        As `zooprune.prune` takes them.
    certified : dict, optional
        What `zooprune.evaluation.calibrate.calibrate` found out, and on which data.

    Raises
    ------
    ValueError, TypeError
        If the method, one of its options or a policy is not valid.
    """

    model: str
    method: str
    keep: int | float
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    positions: Positions = "auto"
    scope: Scope = "image"
    newlines: Newlines = "drop"
    certified: dict[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        for name, kind in (("model", str), ("method", str), ("options", dict)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"a plan's {name} must be a {kind.__name__}, not {type(getattr(self, name)).__name__}")
        for name, allowed in (("positions", Positions), ("scope", Scope), ("newlines", Newlines)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"a plan's {name} is one of {', '.join(get_args(allowed))}, not {getattr(self, name)!r}"
                )
        self.pruner()

    def pruner(self) -> Pruner:
        """Return the configured method."""
        return get_pruner(self.method, keep=self.keep, **self.options)

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any]) -> Plan:
        """Read a plan.

        Parameters
        ----------
        source : str, Path or mapping
            A file, or what is in it.

        Raises
        ------
        ValueError
            If it is no plan of this version; the message says what is wrong.
        """
        where = "the plan" if isinstance(source, Mapping) else str(source)
        try:
            given = source if isinstance(source, Mapping) else json.loads(Path(source).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{where} cannot be read ({error.strerror}); give a file of zooprune calibrate") from None
        except ValueError:
            raise ValueError(f"{where} is not JSON; give a file of zooprune calibrate") from None
        if not isinstance(given, Mapping) or given.get("version") != VERSION:
            raise ValueError(f"{where} is not a plan of version {VERSION}; make it anew with zooprune calibrate")
        fields = {one.name: one for one in dataclasses.fields(cls)}
        unknown = sorted(set(given) - {*fields, "version"})
        missing = [name for name in ("model", "method", "keep") if name not in given]
        if unknown or missing:
            wrong = f"does not know {', '.join(unknown)}" if unknown else f"lacks {', '.join(missing)}"
            raise ValueError(f"{where} {wrong}; a plan has version, {', '.join(fields)}")
        try:
            return cls(**{name: value for name, value in given.items() if name != "version"})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the plan; an older file stays until the new one is whole."""
        write_text(Path(path), json.dumps({"version": VERSION} | dataclasses.asdict(self), indent=1) + "\n")
