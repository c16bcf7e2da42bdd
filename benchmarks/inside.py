"""Methods that prune inside the language model, alone and behind ZOO-Prune, at equal averages.

    python benchmarks/inside.py --run runs/inside           # asks all bundled questions; resumes; hours on one core
    python benchmarks/inside.py --run runs/some --every 70 --keep 64        # a trial
    python benchmarks/inside.py --take runs/inside          # makes inside-*.json and prints the tables
    python benchmarks/inside.py --time bundled --keep 192   # times requests, and makes inside_time-bundled-*.json
    python benchmarks/inside.py --time llava-1.5-7b --device cuda --keep 192 64
    python benchmarks/inside.py                             # prints the tables of the newest file

A budget is the number of visual tokens that a layer reads on average. The bundled model has four layers and reads 576
tokens, so that a method alone, which prunes in front of its second layer at the earliest, meets averages from 145 on.
Behind ZOO-Prune, which lets twice the average enter, all averages can be met. Runs are in bfloat16.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dropped import read
from environment import RESULTS, write
from tables import newest, percent, show, span
from zooprune import list_pruners, load_bundled, prune
from zooprune.answering import Answered, generate
from zooprune.benching.end_to_end import FirstTokens, without_choosing
from zooprune.benching.measuring import time_in_turn
from zooprune.benching.shapes import shape_of
from zooprune.bundled import demo_scene
from zooprune.data.examples import bundled_examples, fingerprint
from zooprune.evaluation.metrics import arrange, compare
from zooprune.evaluation.runner import Results, Setting, Subject, evaluate
from zooprune.prompting import build_inputs
from zooprune.pruners import InsidePruner, get_pruner

BUDGETS = (192, 128, 64, 32)
#: With a budget, `todre_inside` is `vtw`.
INSIDE = [name for name in list_pruners("inside the language model") if name != "todre_inside"]
#: How many tokens enter behind ZOO-Prune, for each that a layer reads on average.
ENTER = 2
#: The fewest tokens that a method alone can let four layers read on average, of 576.
ALONE = 145


@dataclass(frozen=True)
class Pair(Setting):
    """ZOO-Prune, and a method behind it that prunes inside the language model to an average of `keep`."""

    behind: str = "fastv"

    def stages(self) -> tuple[Any, InsidePruner]:
        """Return both methods."""
        assert isinstance(self.keep, int)
        inside = get_pruner(self.behind, keep=self.keep)
        assert isinstance(inside, InsidePruner)
        return get_pruner(self.method, keep=ENTER * self.keep), inside

    @property
    def label(self) -> str:
        """Both names."""
        return f"{self.method}+{self.behind}"


class Staged(Subject):
    """A model that is evaluated under pairs as well."""

    def generate(self, inputs: Any, setting: Setting) -> Answered:
        """Return the replies, the session's report and no time: nothing is timed here."""
        if not isinstance(setting, Pair):
            return super().generate(inputs, setting)
        before, inside = setting.stages()
        with prune(self.model, before, inside=inside) as session:
            texts, _ = generate(self.model, self.processor, inputs, max_new_tokens=self.max_new_tokens)
        return Answered(tuple(text.strip() for text in texts), session.reports[-1], 0.0)


def run(folder: Path, keeps: list[int], every: int) -> None:
    """Ask every question under every setting."""
    model, processor = load_bundled()
    subject = Staged("bundled", model.to(torch.bfloat16), processor, max_new_tokens=8)
    examples = bundled_examples()[::every]
    settings = [Setting()]
    for keep in keeps:
        settings += [Setting("zoo", keep), Setting("random", keep, 0)]
        settings += [Pair("zoo", keep, behind=name) for name in INSIDE]
        if keep >= ALONE:
            settings += [Setting(name, keep, 0 if get_pruner(name).draws("closed form") else None) for name in INSIDE]
    results = Results(folder, {"questions": fingerprint(examples), "settings": [one.described for one in settings]})
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(settings) * len(examples), completed=len(results.rows))
        evaluate(subject, examples, settings, results, batch=45, timed=0,
                 progress=lambda rows: progress.advance(task, rows))  # fmt: skip


def figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each setting: its accuracy, and by how much it differs from ZOO-Prune at the same average."""
    answers = arrange(rows)
    found = []
    for method, keep in dict.fromkeys((row["method"], row["keep"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["keep"]) == (method, keep)]
        right = answers.right[answers.number((method, keep))]
        tasks = {task: float(np.mean([row["right"] for row in mine if row["task"] == task]))
                 for task in sorted({row["task"] for row in mine})}  # fmt: skip
        gaps = {other: compare(answers, (method, keep), (other, keep)) for other in ("zoo", "random")
                if keep is not None and method != other}  # fmt: skip
        found.append(
            {"method": method, "keep": keep, "accuracy": float(np.nanmean(right)), "tasks": tasks}
            | {"read": float(np.mean([row["kept_tokens"] for row in mine]))}
            | {"flops": float(np.mean([row["flops"] for row in mine]))}
            | {f"against {other}": {key: gap[key] for key in ("difference", "interval", "p")}
               for other, gap in gaps.items()}
        )  # fmt: skip
    return found


def times(shape: str, keeps: list[int], methods: list[str], repeats: int, device: str) -> Path:
    """Time requests for one new token beside the free choice, and write what they took."""
    if shape == "bundled":
        model, processor = load_bundled()
        model = model.to(torch.bfloat16).to(device)
        image, question, _ = demo_scene()
        inputs = dict(build_inputs(processor, [[image]], [question]).to(model.device, model.dtype))
    else:
        model, inputs = shape_of(shape).model(device=device), shape_of(shape).inputs(device=device)
    options = {"max_new_tokens": 1, "do_sample": False}
    found: list[dict[str, Any]] = []
    for keep in keeps:
        with prune(model, FirstTokens(keep)) as session:
            limit = without_choosing(model, inputs, session.prepare(inputs))
        providers: dict[str, Callable[[], object]] = {
            "limit": partial(limit, **options),
            "all tokens": partial(model.generate, **inputs, **options),
            "zoo": partial(_request, model, inputs, "zoo", keep, options),
        }
        choosing = {}
        for name in methods:
            try:
                choosing[name] = _request(model, inputs, name, keep, options)
            except ValueError as error:
                print(f"{name} at {keep}: {error}")
            else:
                providers[name] = partial(_request, model, inputs, name, keep, options)
        with torch.no_grad():
            rows = time_in_turn(providers, repeats=repeats, device=device, shape=shape, keep=keep)
        for row in rows:
            seconds = choosing.get(row["provider"], {})
            row["choosing"] = seconds.get("choose inside")
        found += rows
    return write(f"inside_time-{shape}", {"rows": found})


def _request(model: Any, inputs: dict[str, Any], name: str, keep: int, options: dict[str, Any]) -> dict[str, float]:
    with prune(model, name, keep=keep) as session:
        model.generate(**inputs, **options)
        return session.reports[-1].seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder to fill with replies")
    parser.add_argument("--take", nargs="*", type=Path, help="folders of finished runs to take the figures of")
    parser.add_argument("--time", metavar="SHAPE", help="'bundled', or a shape of zooprune.benching.shapes")
    parser.add_argument("--keep", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--every", type=int, default=1, help="ask every n-th question only")
    parser.add_argument("--method", nargs="*", default=INSIDE, help="what is timed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.run is not None:
        return run(arguments.run, arguments.keep, arguments.every)
    if arguments.time is not None:
        print(times(arguments.time, arguments.keep, arguments.method, arguments.repeats, arguments.device))
        return None
    if arguments.take:
        rows, runs = read(arguments.take)
        print(write("inside", {"runs": runs, "rows": figures(rows)}))
    _print(newest("inside")["rows"])
    for path in sorted(RESULTS.glob("inside_time-*.json")):
        _print_times(path)
    return None


def _print(rows: list[dict[str, Any]]) -> None:
    found = {(row["method"], row["keep"]): row for row in rows}
    keeps = sorted({row["keep"] for row in rows if row["keep"] is not None}, reverse=True)
    names = list(dict.fromkeys(row["method"] for row in rows if row["keep"] is not None))
    names.sort(key=lambda name: -sum(found[name, keep]["accuracy"] for keep in keeps if (name, keep) in found))
    print(f"{percent(found['none', None]['accuracy'])} % unpruned\n")
    show(
        ("accuracy", *map(str, keeps)),
        ((name, *(percent(found[name, keep]["accuracy"]) if (name, keep) in found else "" for keep in keeps))
         for name in names),
    )  # fmt: skip
    for other in ("zoo", "random"):
        show(
            (f"difference to {other}", *map(str, keeps)),
            ((name, *(_gap(found.get((name, keep)), other) for keep in keeps)) for name in names if name != other),
        )


def _gap(row: dict[str, Any] | None, other: str) -> str:
    if row is None:
        return ""
    gap = row[f"against {other}"]
    return f"{percent(gap['difference'], '+')} ({span(gap['interval'], '+')})"


def _print_times(path: Path) -> None:
    rows = json.loads(path.read_text())["rows"]
    show(
        (path.stem, "tokens", "request, ms", "choosing inside, ms", "times as fast as all tokens", "peak, MB"),
        ((row["provider"], str(row["keep"]), f"{1e3 * row['p50']:.0f}",
          "" if row["choosing"] is None else f"{1e3 * row['choosing']:.0f}",
          f"{row['times_faster'] / _whole(rows, row['keep']):.2f}",
          "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}") for row in rows),
    )  # fmt: skip


def _whole(rows: list[dict[str, Any]], keep: int) -> float:
    """Return the speed of the unpruned model, relative to the first row."""
    speeds = [row["times_faster"] for row in rows if (row["provider"], row["keep"]) == ("all tokens", keep)]
    return float(speeds[0])


if __name__ == "__main__":
    main()
