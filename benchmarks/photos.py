"""Does what the bundled model shows hold on photographs? From finished runs of experiments/real_photos/measure.py.

    python benchmarks/photos.py runs/real_photos/results*   # makes photos-*.json and prints the tables
    python benchmarks/photos.py --add runs/more             # adds to the newest file what it lacks
    python benchmarks/photos.py                             # prints the tables of the newest file

Parts of a run are put together; see --part of measure.py. The figures of the bundled model are those of the newest
methods-*.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from dropped import NONE, POSITIONS, WAYS, figures, label, read, taken, with_auto
from environment import write
from plotting import figure, save
from tables import newest, percent, show, span
from zooprune import list_pruners
from zooprune.evaluation.metrics import arrange, compare

#: With so many tokens methods are ordered.
KEEP = 64
#: What is told of the stages of a request.
STAGES = {
    "tower": ("encode",),
    "choice": ("score", "select", "assign"),
    "prefill": ("prefill",),
    "first token": ("encode", "score", "select", "assign", "prefill"),
    "whole answer": ("total",),
}


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


def by_task(rows: list[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """Return the accuracy of each way to prune with one method, by task."""
    replies: dict[tuple[str, int | None], dict[str, list[bool]]] = {}
    for row in rows:
        if taken(row)[0] == method:
            replies.setdefault((row["method"], row["keep"]), {}).setdefault(row["task"], []).append(row["right"])
    return [
        dict(zip(("method", "positions", "dropped"), taken({"method": name}), strict=True))
        | {"keep": keep, "accuracy": {task: sum(right) / len(right) for task, right in tasks.items()}}
        for (name, keep), tasks in replies.items()
    ]


def touched(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the share of the places that questions need in which each method keeps a token, by task, at `KEEP`."""
    before = set(list_pruners("before the language model"))
    counts: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        method, _, dropped = taken(row)
        # Neither positions nor what becomes of dropped tokens change which tokens are kept.
        if method in before and row["keep"] == KEEP and dropped == "discard" and row["evidence"]:
            kept, regions = counts.setdefault(method, {}).setdefault(row["task"], [0, 0])
            counts[method][row["task"]] = [kept + row["evidence"]["kept"], regions + row["evidence"]["regions"]]
    return [
        {"method": method, "evidence": {task: kept / regions for task, (kept, regions) in tasks.items()}}
        for method, tasks in counts.items()
    ]


def times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the median seconds of questions about one image that were asked one by one."""
    asked: dict[tuple[str, int | None], list[dict[str, float]]] = {}
    for row in rows:
        if row["seconds"] and len(row["images"]) == 1:
            asked.setdefault((row["method"], row["keep"]), []).append(row["seconds"])
    found = []
    for (name, keep), each in asked.items():
        method, positions, dropped = taken({"method": name})
        median = {
            what: float(np.median([sum(one.get(stage, 0) for stage in stages) for one in each]))
            for what, stages in STAGES.items()
        }
        found.append({"method": method, "positions": positions, "dropped": dropped, "keep": keep}
                     | {"questions": len(each), "seconds": median})  # fmt: skip
    return found


def orders(rows: list[dict[str, Any]], bundled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rank correlation of the methods' accuracy here and on the bundled model, by positions and way."""
    found = []
    for positions in POSITIONS:
        for way in WAYS:
            here, there = at(rows, positions, way), at(bundled, "auto", way)
            shared = sorted(here.keys() & there.keys())
            if len(shared) > 2:
                pair = [here[name] for name in shared], [there[name] for name in shared]
                spearman, kendall = spearmanr(*pair), kendalltau(*pair)
                found.append(
                    {"positions": positions, "dropped": way, "methods": len(shared)}
                    | {"spearman": [float(spearman.statistic), float(spearman.pvalue)]}
                    | {"kendall": [float(kendall.statistic), float(kendall.pvalue)]}
                )
    return found


def at(rows: list[dict[str, Any]], positions: str, way: str, keep: int = KEEP) -> dict[str, float]:
    """Return the accuracy of each method. If it ran on several devices, that with the most methods counts."""
    devices: dict[str, dict[str, float]] = {}
    for row in rows:
        if (row["dropped"], row["keep"], row.get("positions", "auto")) == (way, keep, positions):
            devices.setdefault(row.get("device", ""), {})[row["method"]] = row["accuracy"]["all"]
    return {name: share for found in sorted(devices.values(), key=len) for name, share in found.items()}


def added(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Return earlier figures, and of later ones what those lack."""
    told = dict(earlier)
    for key in ("runs", "zoo by task", "gains of zoo", "places touched", "rows"):
        known = {_named(row) for row in earlier[key]}
        told[key] = earlier[key] + [row for row in later[key] if _named(row) not in known]
    told["all tokens"] = earlier["all tokens"] | {
        device: shares for device, shares in later["all tokens"].items() if device not in earlier["all tokens"]
    }
    return told


def _named(row: dict[str, Any]) -> str:
    """Return what a figure is of."""
    measured = ("accuracy", "difference", "interval", "p", "evidence", "against zoo", "against discarding")
    return json.dumps({key: value for key, value in row.items() if key not in measured}, sort_keys=True)


def told_by(folders: list[Path], timed: Path | None) -> dict[str, Any]:
    """Return all figures of finished runs."""
    rows, _ = read(folders)
    everything = [row for row in rows if row["method"] == NONE]
    arms, unpruned = [], {}
    for device, some in by_device(folders).items():
        here, _ = read(some)
        pruned = [row for row in here if row["method"] != NONE]
        arms += [arm | {"device": device} for arm in figures(with_auto([*everything, *pruned]))]
        if whole := by_task(here, NONE):
            unpruned[device] = whole[0]["accuracy"]
    return {
        "runs": descriptions(folders),
        "all tokens": unpruned,
        "blind": next((json.loads(path.read_text()) for one in folders if (path := one / "blind.json").exists()), {}),
        "zoo by task": by_task(rows, "zoo"),
        "gains of zoo": gains(rows),
        "places touched": touched(rows),
        "rows": arms,
        "times": times(read([timed])[0]) if timed else [],
        "timed on": descriptions([timed]) if timed else [],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of finished runs")
    parser.add_argument("--timed", type=Path, help="folder of a run whose questions were timed one by one")
    parser.add_argument("--add", action="store_true", help="keep the newest file's figures and add what they lack")
    arguments = parser.parse_args()
    if arguments.add and arguments.timed:
        parser.error("--add keeps the times of the newest file; leave out --timed")
    if arguments.runs:
        told = told_by(arguments.runs, arguments.timed)
        if arguments.add:
            told = added(newest("photos"), told)
        told["order"] = orders(told["rows"], newest("methods")["rows"])
        print(write("photos", told), draw(told))
    told = newest("photos")
    unpruned = told["all tokens"]
    tasks = next(iter(unpruned.values()))
    show(
        ("images", *tasks, "mean"),
        ((name, *(percent(shares[task]) for task in tasks), percent(sum(shares.values()) / len(shares)))
         for name, shares in (unpruned | told["blind"]).items()),
    )  # fmt: skip
    rows = told["rows"]
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    found = {(row["method"], row["dropped"], row["positions"], row["device"], row["keep"]): row for row in rows}
    show(
        ("method", "dropped", "positions", "device", *map(str, keeps)),
        ((*arm, *(_cell(found.get((*arm, keep))) for keep in keeps)) for arm in sorted({key[:4] for key in found})),
    )
    show(
        ("zoo, positions", "dropped", "tokens", *tasks),
        ((row["positions"], row["dropped"], str(row["keep"]), *(percent(row["accuracy"][task]) for task in tasks))
         for row in sorted(told["zoo by task"], key=lambda row: (row["positions"], row["dropped"], -row["keep"]))),
    )  # fmt: skip
    show(
        (f"places touched by {KEEP} tokens", *tasks),
        ((row["method"], *(percent(row["evidence"][task]) for task in tasks)) for row in told["places touched"]),
    )
    show(
        ("zoo", "against", "tokens", "difference", "95 %", "p"),
        ((", ".join(row["way"]), ", ".join(row["against"]), str(row["keep"]), percent(row["difference"], "+"),
          span(row["interval"], "+"), f"{row['p']:.2g}") for row in told["gains of zoo"]),
    )  # fmt: skip
    show(
        ("positions", "dropped", "methods", "Spearman", "Kendall"),
        ((row["positions"], row["dropped"], str(row["methods"]), *(f"{row[name][0]:.2f} (p = {row[name][1]:.2g})"
                                                 for name in ("spearman", "kendall")))
         for row in told["order"]),
    )  # fmt: skip
    show(
        ("tokens", "positions", "dropped", *(f"{name}, ms" for name in STAGES)),
        ((str(row["keep"] or "all"), row["positions"], row["dropped"],
          *(f"{1000 * seconds:,.0f}" for seconds in row["seconds"].values())) for row in told["times"]),
    )  # fmt: skip


def gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return by how much ZOO-Prune is better in one way than in another, with the interval over scenes."""
    rows = [row for row in with_auto(rows) if taken(row)[0] in ("zoo", NONE)]
    asked = Counter((row["method"], row["keep"]) for row in rows)
    # A way that only some questions were asked in has no figure.
    arms = {arm for arm, count in asked.items() if count == asked[NONE, None]}
    answers = arrange(row for row in rows if (row["method"], row["keep"]) in arms)
    pairs = [(("zoo", positions, "stand in"), ("zoo", positions, "discard")) for positions in POSITIONS]
    pairs += [(("zoo", "original", dropped), ("zoo", "contiguous", dropped)) for dropped in ("discard", "stand in")]
    return [
        {"way": one[1:], "against": other[1:], "keep": keep}
        | {key: gap[key] for key in ("difference", "interval", "p")}
        for one, other in pairs
        for keep in sorted({keep for _, keep in arms if keep}, reverse=True)
        if {(label(*one), keep), (label(*other), keep)} <= arms
        for gap in [compare(answers, (label(*one), keep), (label(*other), keep))]
    ]


def draw(told: dict[str, Any]) -> Path:
    """Draw how ZOO-Prune's accuracy falls with the budget, a panel for each numbering."""
    shares = [*next(iter(told["all tokens"].values())).values()]
    drawn, panels = figure(2)
    for axes, positions in zip(panels, ("contiguous", "original"), strict=True):
        for way in ("stand in", "discard"):
            rows = [row for row in told["zoo by task"] if (row["positions"], row["dropped"]) == (positions, way)]
            rows.sort(key=lambda row: row["keep"])
            means = [100 * sum(row["accuracy"].values()) / len(row["accuracy"]) for row in rows]
            axes.plot([row["keep"] for row in rows], means, marker="o", markersize=3, label=way)
        axes.axhline(100 * sum(shares) / len(shares), color="grey", linewidth=0.8, label="all 576 tokens")
        axes.axhline(100 * np.mean([*told["blind"]["removed"].values()]), color="grey", ls=":", label="no image")
        axes.set(xscale="log", xlabel=f"visual tokens kept, {positions} positions", ylabel="right, %", ylim=(0, 90))
        axes.set_xticks(ticks := sorted({row["keep"] for row in told["zoo by task"]}), [*map(str, ticks)])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=7)
    return save(drawn, "photographs")


def by_device(folders: list[Path]) -> dict[str, list[Path]]:
    """Return the folders of each device: answers of two differ a little, and are not compared."""
    found: dict[str, list[Path]] = {}
    for folder in folders:
        device = json.loads((folder / "run.json").read_text())["environment"]["gpu"] or "CPU"
        found.setdefault(device, []).append(folder)
    return found


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    gap = row["against zoo"]
    return percent(row["accuracy"]["all"]) + (f" ({span(gap['all']['interval'], '+')})" if gap else "")


if __name__ == "__main__":
    main()
