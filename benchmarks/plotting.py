"""Small line charts of benchmark rows, one file for each script."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes

IMAGES = Path(__file__).parents[1] / "docs" / "images"

matplotlib.rcParams |= {
    "svg.hashsalt": "zooprune",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def lines(axes: Axes, rows: Sequence[dict[str, Any]], along: str, title: str) -> None:
    """Draw the median time of every provider along one of the rows' numbers, both on logarithmic scales."""
    for provider in dict.fromkeys(row["provider"] for row in rows):
        mine = sorted((row for row in rows if row["provider"] == provider), key=lambda row: row[along])
        places, medians = [row[along] for row in mine], [1e3 * row["p50"] for row in mine]
        axes.plot(places, medians, marker="o", markersize=3, linewidth=1.2, label=provider)
        axes.fill_between(places, [1e3 * row["p20"] for row in mine], [1e3 * row["p80"] for row in mine], alpha=0.15)
    axes.set(xscale="log", yscale="log", xlabel=title, ylabel="milliseconds")
    axes.legend(frameon=False, fontsize=7)


def figure(panels: int) -> tuple[Any, list[Axes]]:
    """Return a row of panels."""
    drawn, axes = pyplot.subplots(1, panels, figsize=(4.2 * panels, 3.4), squeeze=False, layout="constrained")
    return drawn, list(axes[0])


def save(drawn: Any, name: str) -> Path:
    """Write an SVG beside the documentation's other images; an earlier one stays until the new one is whole."""
    path = IMAGES / f"{name}.svg"
    temporary = path.with_suffix(".tmp")
    drawn.savefig(temporary, format="svg", metadata={"Date": None})
    os.replace(temporary, path)
    return path
