"""Print the tables of docs/findings.md and of the README from the newest result files.

    python benchmarks/tables.py                  # from the files that are there
    python benchmarks/tables.py --run runs/eval  # makes table-*.json from the folder of a finished run first

`blind.py` and `findings.py` write two of them. The third, ``table-*.json``, holds the figures of a run of ``zooprune
eval`` on the bundled questions, whose command stands in the page, together with the run's ``run.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from environment import RESULTS
from zooprune.bundled.benchmark import KINDS
from zooprune.data.examples import bundled_examples
from zooprune.evaluation.report import digest
from zooprune.evaluation.runner import read_rows
from zooprune.files import write_text

BUDGETS = (192, 128, 64, 32, 16)
METHODS = ("zoo", "diversity", "sensitivity", "random")


def newest(name: str) -> dict[str, Any]:
    path = max(RESULTS.glob(f"{name}-20*.json"))
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def show(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    for row in (heads, ["---"] + ["---:"] * (len(list(heads)) - 1), *rows):
        print(f"| {' | '.join(row)} |")
    print()


def percent(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.1f}"


def span(interval: list[float], sign: str = "") -> str:
    return " to ".join(percent(end, sign) for end in interval)


def write_figures(folder: Path) -> Path:
    """Write what a finished run on the bundled questions found, and return the file.

    Rows of runs that did not note the scenes of a question get them from the benchmark.
    """
    run: dict[str, Any] = json.loads((folder / "run.json").read_text())
    examples = {example.id: example for example in bundled_examples()}
    rows = [
        row
        | {"scenes": list(examples[row["id"]].scenes), "method": row["method"].removesuffix("(positions=contiguous)")}
        for row in read_rows(folder / "results.jsonl")
    ]
    answered = {row["id"] for row in rows}
    if len(answered) < len(examples) or len(rows) % len(examples):
        raise SystemExit(f"{folder} is not finished: {len(rows):,} replies to {len(answered):,} questions")
    path = RESULTS / f"table-{run['environment']['date']}.json"
    figures = {"environment": run["environment"], "configuration": run["configuration"], "models": digest(rows)}
    write_text(path, json.dumps(figures, indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run to take the figures of")
    arguments = parser.parse_args()
    if arguments.run is not None:
        print(write_figures(arguments.run))
    blind = newest("blind")
    print(f"{blind['questions']} questions\n")
    show(
        ("images", *KINDS, "mean"),
        ((row["images"], *(f"{row['accuracy'][kind]:.0f}" for kind in KINDS), f"{row['accuracy']['mean']:.1f}")
         for row in blind["rows"]),
    )  # fmt: skip
    model = newest("table")["models"]["bundled"]
    arms = {(arm["method"], arm["keep"]): arm for arm in model["summary"]}
    print(f"{arms['none', None]['questions']} questions, {percent(arms['none', None]['accuracy'])} % unpruned\n")
    show(
        ("score kept", *map(str, BUDGETS)),
        ((method, *(f"{percent(arms[method, keep]['kept_share'])} ({span(arms[method, keep]['kept_share_interval'])})"
                    for keep in BUDGETS)) for method in METHODS),
    )  # fmt: skip
    for figure in ("accuracy", "agreement", "evidence_recall"):
        show(
            (figure, *map(str, BUDGETS)),
            ((method, *(percent(arms[method, keep][figure]) for keep in BUDGETS)) for method in METHODS),
        )
    for keep in (64, 32):
        chosen = [("none", None), *((method, keep) for method in METHODS)]
        show(
            (f"at {keep}", *KINDS, "all"),
            ((arm[0], *(f"{100 * arms[arm]['tasks'][kind]['accuracy']:.0f}" for kind in KINDS),
              percent(arms[arm]["accuracy"])) for arm in chosen),
        )  # fmt: skip
    show(
        ("first", "against", "difference", "95 %", "p"),
        ((" ".join(map(str, gap["first"])), " ".join(map(str, gap["second"])), percent(gap["difference"], "+"),
          span(gap["interval"], "+"), f"{gap['p']:.2g}")
         for gap in model["comparisons"] if gap["first"][0] == "zoo"),
    )  # fmt: skip
    show(
        ("variant", "tokens", "questions", "ZOO-Prune", "variant", "difference", "95 %", "p", "same tokens"),
        ((row["variant"], str(row["keep"]), str(row["questions"]), percent(row["zoo"]), percent(row["accuracy"]),
          percent(row["difference"], "+"), span(row["interval"], "+"), f"{row['p']:.2g}",
          f"{100 * row['same tokens']:.0f} %") for row in newest("findings")["rows"]),
    )  # fmt: skip
    show(
        ("ZOO-Prune and variant", "tokens", *KINDS),
        ((row["variant"], str(row["keep"]),
          *(", ".join(f"{100 * share:.0f}" for share in row["tasks"][kind]) for kind in KINDS))
         for row in newest("findings")["rows"]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
