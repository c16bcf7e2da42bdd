"""Every method on all bundled questions, discarding and standing in, and whether their order is the published order.

    python benchmarks/methods.py --run runs/methods --keep 64 16    # resumes; hours on one core
    python benchmarks/methods.py --run runs/more --method zoo --options centred distinctive --keep 64
    python benchmarks/methods.py --take runs/methods runs/more      # makes methods-*.json and prints the tables
    python benchmarks/methods.py                                    # prints the tables of the newest file

Runs are in bfloat16, as models are deployed; ``positions`` is "auto".
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from scipy.stats import kendalltau, spearmanr

from dropped import figures, read
from environment import write
from tables import newest, percent, show, span
from zooprune import list_pruners, load_bundled
from zooprune.data.examples import bundled_examples, fingerprint
from zooprune.evaluation.runner import Results, Setting, Subject, evaluate
from zooprune.policy import Policy
from zooprune.pruners import UNPRUNED, pruner_class

BUDGETS = (192, 128, 64, 32, 16)
#: Share of the unpruned score, in percent, as printed for LLaVA-1.5-7B with 64 tokens: by the authors, or by others
#: where that is what there is. See the papers for which tasks were averaged; they differ.
PUBLISHED = {
    "zoo": 95.2, "divprune": 94.8, "visionzip": 93.2, "cdpruner": 97.0, "mmtok": 96.6, "tops": 97.1, "scope": 96.0,
    "eadp": 95.8, "prunesid": 96.3, "agilepruner": 96.8, "holov": 92.2, "vispruner": 92.8, "prumerge_plus": 92.4,
}  # fmt: skip


def run(folder: Path, methods: list[str], keeps: list[int], ways: list[str], options: list[str]) -> None:
    """Ask every question with every method, its options being switched on one by one and together."""
    model, processor = load_bundled()
    subject = Subject("bundled", model.to(torch.bfloat16), processor, max_new_tokens=8)
    examples = bundled_examples()
    switched: list[dict[str, Any]] = [{}]
    if options:
        switched = [{name: True} for name in options] + ([dict.fromkeys(options, True)] if len(options) > 1 else [])
    settings = [Setting()] + [
        Setting(method, keep, 0 if pruner_class(method)().draws("closed form") else None, chosen, Policy(dropped=way))  # type: ignore[arg-type]
        for keep in keeps
        for method in methods
        for chosen in switched
        for way in ways
    ]
    results = Results(folder, {"questions": fingerprint(examples), "settings": [one.described for one in settings]})
    missing = len(settings) * len(examples) - len(results.rows)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        task = progress.add_task("", total=max(0, missing))
        evaluate(subject, examples, settings, results, batch=45, timed=0,
                 progress=lambda rows: progress.advance(task, rows))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder to fill with replies")
    parser.add_argument("--method", nargs="*", help="all that read images when left out")
    parser.add_argument("--keep", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--dropped", nargs="*", default=["discard", "stand in"])
    parser.add_argument("--options", nargs="*", default=[], help="options of the method to switch on")
    parser.add_argument("--take", nargs="*", type=Path, help="folders of finished runs to take the figures of")
    arguments = parser.parse_args()
    if arguments.run is not None:
        names = list_pruners("before the language model")
        for_images = [name for name in names if "image" in pruner_class(name).modalities]
        methods = arguments.method or [name for name in for_images if name != UNPRUNED]
        return run(arguments.run, methods, arguments.keep, arguments.dropped, arguments.options)
    if arguments.take:
        rows, runs = read(arguments.take)
        print(write("methods", {"runs": runs, "rows": figures(rows)}))
    _print(newest("methods")["rows"])
    return None


def _print(rows: list[dict[str, Any]]) -> None:
    for way in ("discard", "stand in"):
        found = {(row["method"], row["keep"]): row for row in rows if row["dropped"] == way}
        names = {row["method"] for row in rows if row["dropped"] == way}
        by_mean = sorted(
            names,
            key=lambda name: -sum(found[name, keep]["accuracy"]["all"] for keep in (64, 16) if (name, keep) in found),
        )
        for part in ("all", "without counting", "first half", "second half"):
            print(f"**{way}, {part}**\n")
            show(
                ("method", *map(str, BUDGETS)),
                ((name, *(percent(found[name, keep]["accuracy"][part]) if (name, keep) in found else ""
                          for keep in BUDGETS)) for name in by_mean),
            )  # fmt: skip
        print(f"**{way}, difference to zoo**\n")
        show(
            ("method", *map(str, BUDGETS)),
            ((name, *(_gap(found.get((name, keep))) for keep in BUDGETS)) for name in by_mean if name != "zoo"),
        )
    print("**published order, LLaVA-1.5-7B with 64 tokens**\n")
    ranks = []
    for way in ("discard", "stand in"):
        ours = {row["method"]: row["accuracy"] for row in rows if row["dropped"] == way and row["keep"] == 64}
        shared = [name for name in PUBLISHED if name in ours]
        for part in ("all", "without counting"):
            pair = [PUBLISHED[name] for name in shared], [ours[name][part] for name in shared]
            spearman, kendall = spearmanr(*pair), kendalltau(*pair)
            ranks.append((way, part, str(len(shared)), f"{spearman.statistic:.2f} (p = {spearman.pvalue:.2g})",
                          f"{kendall.statistic:.2f} (p = {kendall.pvalue:.2g})"))  # fmt: skip
    show(("dropped", "questions", "methods", "Spearman", "Kendall"), ranks)


def _gap(row: dict[str, Any] | None) -> str:
    if row is None or not row["against zoo"]:
        return ""
    gap = row["against zoo"]["all"]
    return f"{percent(gap['difference'], '+')} ({span(gap['interval'], '+')})"


if __name__ == "__main__":
    main()
