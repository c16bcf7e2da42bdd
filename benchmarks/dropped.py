"""What becomes of dropped tokens: every method with every way, from the folders of finished runs of ``zooprune eval``.

    zooprune eval --method zoo --keep 64 --dropped discard --dropped "stand in" --positions contiguous \
        --positions original --batch 45 --timed 0 --max-new-tokens 8 --out runs/zoo
    python benchmarks/dropped.py runs/zoo runs/others     # makes dropped-*.json and prints the tables
    python benchmarks/dropped.py                          # prints the tables of the newest file

``positions="auto"`` needs no run: it is "contiguous" for questions about one image and "original" for the others. The
scenes are dealt into two halves, so that what was chosen on one can be confirmed on the other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from environment import RESULTS, write
from tables import percent, show, span
from zooprune.evaluation.intervals import clusters
from zooprune.evaluation.metrics import Answers, arrange, compare
from zooprune.evaluation.runner import Row, read_rows

WAYS = ("discard", "mean", "mass", "stand in")
POSITIONS = ("contiguous", "original", "auto")
NONE = "none"


def read(folders: Iterable[Path]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of all runs, those of the unpruned model once, and what the runs were."""
    rows, runs, seen = [], {}, set()
    for folder in folders:
        run = json.loads((folder / "run.json").read_text())
        runs[folder.name] = run["configuration"] | {"commit": run["environment"]["commit"]}
        for row in read_rows(folder / "results.jsonl"):
            key = row["method"], row["keep"], row["seed"], row["id"]
            if key not in seen:
                seen.add(key)
                rows.append(row)
    return rows, runs


def with_auto(rows: list[Row]) -> list[Row]:
    """Return the rows, and those that "auto" would have given."""
    auto = []
    for row in rows:
        if row["method"] != NONE and taken(row)[1] == ("original" if len(row["images"]) > 1 else "contiguous"):
            method, _, dropped = taken(row)
            auto.append(row | {"method": label(method, "auto", dropped)})
    return rows + auto


def taken(row: Row) -> tuple[str, str, str]:
    """Return method, with options of its own, positions and what became of dropped tokens."""
    method, _, rest = row["method"].partition("(")
    options = dict(part.split("=") for part in rest.rstrip(")").split(", ")) if rest else {}
    positions, dropped = options.pop("positions", "auto"), options.pop("dropped", "discard")
    own = ", ".join(f"{name}={value}" for name, value in options.items())
    return method + (f"({own})" if own else ""), positions, dropped


def label(method: str, positions: str, dropped: str) -> str:
    """Return what the rows of an arm are called."""
    name, _, own = method.partition("(")
    parts = [own.rstrip(")")] if own else []
    parts += [] if positions == "auto" else [f"positions={positions}"]
    parts += [] if dropped == "discard" else [f"dropped={dropped}"]
    return name + (f"({', '.join(parts)})" if parts else "")


def figures(rows: list[Row]) -> list[dict[str, Any]]:
    """Return one row for each method, way, positions and budget that all questions were asked with."""
    questions = {row["id"]: row for row in rows if row["method"] == NONE}
    group = dict(zip(questions, clusters(row["scenes"] for row in questions.values()).tolist(), strict=True))
    parts = {
        "all": set(questions),
        "without counting": {name for name, row in questions.items() if row["task"] != "count"},
        "one image": {name for name, row in questions.items() if row["task"] != "pair"},
        "two images": {name for name, row in questions.items() if row["task"] == "pair"},
        "first half": {name for name in questions if group[name] % 2 == 0},
        "second half": {name for name in questions if group[name] % 2 == 1},
    }
    arms: dict[tuple[str, int], int] = {}
    for row in rows:
        arms[row["method"], row["keep"]] = arms.get((row["method"], row["keep"]), 0) + 1
    arms = {arm: count for arm, count in arms.items() if count % len(questions) == 0}
    whole = [row for row in rows if (row["method"], row["keep"]) in arms]
    answers = {part: arrange(row for row in whole if row["id"] in names) for part, names in parts.items()}
    found = []
    for name, keep in arms:
        if name == NONE:
            continue
        method, positions, dropped = taken({"method": name})
        accuracy = {part: float(np.nanmean(their.right[their.number((name, keep))])) for part, their in answers.items()}
        others = {
            "against discarding": [label(method, way, "discard") for way in ("contiguous", "auto")],
            "against zoo": [label("zoo", positions, dropped)],
        }
        found.append(
            {"method": method, "positions": positions, "dropped": dropped, "keep": keep, "accuracy": accuracy}
            | {what: _differences(answers, (name, keep), [other for other in named if (other, keep) in arms])
               for what, named in others.items()}
        )  # fmt: skip
    return found


def _differences(answers: dict[str, Answers], arm: tuple[str, int], others: list[str]) -> dict[str, Any]:
    """Return by how much an arm is better than the first of others, which have the same budget."""
    if not others or others[0] == arm[0]:
        return {}
    gaps = {part: compare(their, arm, (others[0], arm[1])) for part, their in answers.items()}
    return {part: {key: gap[key] for key in ("difference", "interval", "p")} for part, gap in gaps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of finished runs")
    arguments = parser.parse_args()
    if arguments.runs:
        rows, runs = read(arguments.runs)
        path = write("dropped", {"runs": runs, "rows": figures(with_auto(rows))})
        print(path)
    else:
        path = max(RESULTS.glob("dropped-20*.json"))
    rows = json.loads(path.read_text())["rows"]
    for part in ("all", "without counting", "one image", "two images", "first half", "second half"):
        print(f"**{part}**\n")
        _table(rows, part)
    print("**against discarding, contiguous**\n")
    show(
        ("method", "dropped", "positions", "tokens", "difference", "95 %", "p", "second half"),
        ((row["method"], row["dropped"], row["positions"], str(row["keep"]),
          percent(row["against discarding"]["all"]["difference"], "+"),
          span(row["against discarding"]["all"]["interval"], "+"), f"{row['against discarding']['all']['p']:.2g}",
          percent(row["against discarding"]["second half"]["difference"], "+"))
         for row in rows if row["against discarding"]),
    )  # fmt: skip


def _table(rows: list[dict[str, Any]], part: str) -> None:
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    found = {(row["method"], row["dropped"], row["positions"], row["keep"]): row["accuracy"][part] for row in rows}
    arms = sorted({key[:3] for key in found}, key=lambda arm: (arm[0], WAYS.index(arm[1]), POSITIONS.index(arm[2])))
    show(
        ("method", "dropped", "positions", *map(str, keeps)),
        ((*arm, *(percent(found[(*arm, keep)]) if (*arm, keep) in found else "" for keep in keeps)) for arm in arms),
    )


if __name__ == "__main__":
    main()
