"""A table of the paper: what to run for every row, and what others got."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
TABLES = FOLDER / "tables"

#: The arguments that tell the rows of a table apart.
_IDENTITY = ("method", "keep", "fusion")


@dataclass(frozen=True)
class Benchmark:
    """One column: lmms-eval's task, and how its metrics make the figure in the table.

    The figure is the sum of the metrics times `scale`. There are none where a server scores the replies. Two figures
    agree when they lie within `tolerance`.
    """

    task: str
    metrics: tuple[str, ...]
    scale: float
    tolerance: float

    def figure(self, scores: Mapping[str, Mapping[str, float]]) -> float | None:
        """Return the figure from the scores of a run, by task and metric, or None where one is missing."""
        found = [scores.get(self.task, {}).get(metric) for metric in self.metrics]
        return None if not found or None in found else self.scale * sum(found)


@dataclass(frozen=True)
class Row:
    """One method at one budget: the model arguments that make it, and the figures on file by source and column."""

    arguments: Mapping[str, Any]
    figures: Mapping[str, Mapping[str, float]]

    @property
    def name(self) -> str:
        """Return what to call it, in tables and as a folder."""
        return name_of(self.arguments)


@dataclass(frozen=True)
class Recipe:
    """One table."""

    title: str
    model_args: Mapping[str, Any]
    sources: Mapping[str, str]
    benchmarks: Mapping[str, Benchmark]
    rows: tuple[Row, ...]


def name_of(arguments: Mapping[str, Any]) -> str:
    """Return the name of the row that these model arguments make: "none", "zoo-64", "zoo-64-sum"."""
    return "-".join(str(arguments[key]) for key in _IDENTITY if key in arguments)


def known_recipes() -> list[str]:
    """Return the names of all tables."""
    return sorted(path.stem for path in TABLES.glob("*.json"))


def folder_of(name: str) -> Path:
    """Return where a recipe's results lie unless another folder is given."""
    return Path("runs") / Path(name).name.removesuffix(".json")


def load_recipe(name: str) -> Recipe:
    """Load a table by its name or from a JSON file."""
    path = Path(name) if name.endswith(".json") else TABLES / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"there is no recipe {name}; choose one of {', '.join(known_recipes())}, or give a JSON file")
    table = json.loads(path.read_text())
    benchmarks = {
        name: Benchmark(column["task"], tuple(column["metrics"]), column["scale"], column["tolerance"])
        for name, column in table["benchmarks"].items()
    }
    rows = tuple(
        Row(
            {key: value for key, value in row.items() if key not in table["sources"]},
            {source: row[source] for source in table["sources"] if source in row},
        )
        for row in table["rows"]
    )
    return Recipe(table["title"], table["model_args"], table["sources"], benchmarks, rows)
