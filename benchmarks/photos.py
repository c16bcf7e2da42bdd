"""Does what the bundled model shows hold on photographs? From finished runs of experiments/real_photos/measure.py.

    python benchmarks/photos.py runs/real_photos/results*   # makes photos-*.json and prints the tables
    python benchmarks/photos.py                             # prints the tables of the newest file

Parts of a run are put together; see --part of measure.py. The figures of the bundled model are those of the newest
methods-*.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau, spearmanr

from dropped import NONE, WAYS, figures, read, with_auto
from environment import write
from tables import newest, percent, show, span

#: With so many tokens methods are ordered.
KEEP = 64


def descriptions(folders: list[Path]) -> list[dict[str, Any]]:
    """Return what the runs were made with, apart from their settings and parts, once each."""
    found = []
    for folder in folders:
        run = json.loads((folder / "run.json").read_text())
        told = {key: run["configuration"][key] for key in ("weights", "batch", "dtype", "max-new-tokens")}
        told["weights"] = [*told["weights"].values()]
        told["environment"] = {key: value for key, value in run["environment"].items() if key != "commit"}
        if told not in found:
            found.append(told)
    return found


def by_task(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the accuracy with all tokens, by task."""
    replies: dict[str, list[bool]] = {}
    for row in rows:
        if row["method"] == NONE:
            replies.setdefault(row["task"], []).append(row["right"])
    return {task: sum(right) / len(right) for task, right in replies.items()}


def orders(rows: list[dict[str, Any]], bundled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rank correlation of the methods' accuracy here and on the bundled model, by what becomes of tokens."""
    found = []
    for way in WAYS:
        here, there = at(rows, way), at(bundled, way)
        shared = sorted(here.keys() & there.keys())
        if len(shared) > 2:
            pair = [here[name] for name in shared], [there[name] for name in shared]
            spearman, kendall = spearmanr(*pair), kendalltau(*pair)
            found.append(
                {"dropped": way, "methods": len(shared)}
                | {"spearman": [float(spearman.statistic), float(spearman.pvalue)]}
                | {"kendall": [float(kendall.statistic), float(kendall.pvalue)]}
            )
    return found


def at(rows: list[dict[str, Any]], way: str, keep: int = KEEP) -> dict[str, float]:
    """Return the accuracy of each method with `positions="auto"`."""
    return {
        row["method"]: row["accuracy"]["all"]
        for row in rows
        if row["dropped"] == way and row["keep"] == keep and row.get("positions", "auto") == "auto"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of finished runs")
    arguments = parser.parse_args()
    if arguments.runs:
        rows, _ = read(arguments.runs)
        blind = next(path for folder in arguments.runs if (path := folder / "blind.json").exists())
        arms = figures(with_auto(rows))
        told = {
            "runs": descriptions(arguments.runs),
            "all tokens": by_task(rows),
            "blind": json.loads(blind.read_text()),
            "rows": arms,
            "order": orders(arms, newest("methods")["rows"]),
        }
        print(write("photos", told))
    told = newest("photos")
    tasks = told["all tokens"]
    show(
        ("images", *tasks, "mean"),
        ((name, *(percent(shares[task]) for task in tasks), percent(sum(shares.values()) / len(shares)))
         for name, shares in {"all tokens": tasks, **told["blind"]}.items()),
    )  # fmt: skip
    rows = told["rows"]
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    found = {(row["method"], row["dropped"], row["positions"], row["keep"]): row for row in rows}
    show(
        ("method", "dropped", "positions", *map(str, keeps)),
        ((*arm, *(_cell(found.get((*arm, keep))) for keep in keeps)) for arm in sorted({key[:3] for key in found})),
    )
    show(
        ("dropped", "methods", "Spearman", "Kendall"),
        ((row["dropped"], str(row["methods"]), *(f"{row[name][0]:.2f} (p = {row[name][1]:.2g})"
                                                 for name in ("spearman", "kendall")))
         for row in told["order"]),
    )  # fmt: skip


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    gap = row["against zoo"]
    return percent(row["accuracy"]["all"]) + (f" ({span(gap['all']['interval'], '+')})" if gap else "")


if __name__ == "__main__":
    main()
