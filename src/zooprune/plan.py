"""How to prune one model, as a small JSON file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zooprune.files import write_text
from zooprune.policy import Policy
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
    policy : Policy
        Positions, scope and newlines; fields of their own in the file.
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
    policy: Policy = field(default_factory=Policy)
    certified: dict[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        for name, kind in (("model", str), ("method", str), ("options", dict)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"a plan's {name} must be a {kind.__name__}, not {type(getattr(self, name)).__name__}")
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
            raise ValueError(
                f"{where} cannot be read ({error.strerror}); give a file of zooprune calibrate or tune"
            ) from None
        except ValueError:
            raise ValueError(f"{where} is not JSON; give a file of zooprune calibrate or tune") from None
        if not isinstance(given, Mapping) or given.get("version") != VERSION:
            raise ValueError(
                f"{where} is not a plan of version {VERSION}; make it anew with zooprune calibrate or tune"
            )
        policies = [each.name for each in dataclasses.fields(Policy)]
        known = [each.name for each in dataclasses.fields(cls) if each.name != "policy"] + policies
        unknown = sorted(set(given) - {*known, "version"})
        missing = [name for name in ("model", "method", "keep") if name not in given]
        if unknown or missing:
            wrong = f"does not know {', '.join(unknown)}" if unknown else f"lacks {', '.join(missing)}"
            raise ValueError(f"{where} {wrong}; a plan has version, {', '.join(known)}")
        try:
            policy = Policy(**{name: given[name] for name in policies if name in given})
            return cls(
                policy=policy, **{name: value for name, value in given.items() if name not in ("version", *policies)}
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the plan; an older file stays until the new one is whole."""
        write_text(Path(path), json.dumps({"version": VERSION} | self.as_json(), indent=1) + "\n")

    def as_json(self) -> dict[str, Any]:
        """Return its fields as the file has them, those of the policy among them."""
        plain = dataclasses.asdict(self)
        return plain | plain.pop("policy")
