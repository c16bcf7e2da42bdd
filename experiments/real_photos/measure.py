"""Ask the test's questions with every method, budget and way, and without the images; write the report.

    python experiments/real_photos/measure.py --model runs/real_photos/model --questions runs/real_photos/questions \
        --method zoo --method divprune --out runs/real_photos/results

Without --method all methods before the language model are asked; --keep, --dropped and --positions may be repeated.
An interrupted run resumes when the command is repeated. The rows are those of `zooprune eval`, and so are the reports.
With --part 2/8 only every eighth question is asked, from the second on, and nothing but the rows is written: several
processes share the work, and `benchmarks/photos.py` puts their folders together.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

from asking import TASKS
from zooprune.answering import generate
from zooprune.data.examples import Example, Region, fingerprint, load_examples
from zooprune.evaluation.metrics import is_right
from zooprune.evaluation.publish import draw_cases, publish
from zooprune.evaluation.runner import Results, Subject, evaluate, grid
from zooprune.loading import load_model, model_version
from zooprune.policy import Policy
from zooprune.prompting import build_inputs
from zooprune.pruners import UNPRUNED, get_pruner, list_pruners

KEEP = (192, 128, 64, 32, 16)
GREY = (128, 128, 128)
LONGEST_ANSWER = 8


def load_questions(folder: Path, limit: int | None = None) -> tuple[list[Example], set[str]]:
    """Return the questions with their evidence, and the ids of those about kinds that training did not ask about."""
    told = {row["id"]: row for row in map(json.loads, (folder / "evidence.jsonl").read_text().splitlines())}
    examples = [
        replace(example, evidence=tuple(Region(image, tuple(box)) for image, box in told[example.id]["evidence"]))
        for example in load_examples(folder / "questions.jsonl", limit=limit)
    ]
    return examples, {name for name, row in told.items() if row["new"]}


def blind(subject: Subject, examples: Sequence[Example], batch: int) -> dict[str, dict[str, float]]:
    """Return the accuracy per task with grey images in place of the real ones, and without any."""
    ordered = sorted(examples, key=lambda example: len(example.images))
    asked = Counter(example.task for example in examples)
    found = {}
    for way in ("grey", "removed"):
        right: Counter[str] = Counter()
        for first in track(range(0, len(ordered), batch), f"images {way}", console=Console(stderr=True)):
            some = ordered[first : first + batch]
            shown = [
                [] if way == "removed" else [Image.new("RGB", load().size, GREY) for load in example.images]
                for example in some
            ]
            inputs = build_inputs(subject.processor, shown, [example.question for example in some])
            inputs = inputs.to(subject.model.device, subject.model.dtype)
            replies, *_ = generate(subject.model, subject.processor, inputs, max_new_tokens=LONGEST_ANSWER)
            for example, reply in zip(some, replies, strict=True):
                right[example.task] += is_right(reply, example.answers)
        found[way] = {task: right[task] / asked[task] for task in TASKS if asked[task]}
    return found


def show(results: Results, without: dict[str, dict[str, float]], new: set[str]) -> None:
    """Print the accuracy per task with all tokens, with and without the images, and for kinds held out of a task."""
    rows = [row for row in results.rows if row["method"] == UNPRUNED]
    lines = {
        "all tokens": rows,
        "kinds asked about in training": [row for row in rows if row["id"] not in new],
        "kinds not asked about": [row for row in rows if row["id"] in new],
    }
    shares = {name: _shares(some) for name, some in lines.items()}
    shares |= {f"images {way}": found for way, found in without.items()}
    table = Table("", *TASKS, "mean")
    for name, found in shares.items():
        cells = (f"{100 * found[task]:.1f}" if task in found else "" for task in TASKS)
        table.add_row(name, *cells, f"{100 * sum(found.values()) / max(1, len(found)):.1f}")
    Console(width=140).print(table)


def _shares(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    asked, right = Counter(row["task"] for row in rows), Counter(row["task"] for row in rows if row["right"])
    return {task: right[task] / asked[task] for task in TASKS if asked[task]}


def part(text: str) -> tuple[int, int]:
    """Return the numbers of "2/8"."""
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part like 2/8")
    return int(number), int(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the exported model")
    parser.add_argument("--questions", type=Path, required=True, help="folder that draw_questions.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--method", action="append", help="default: all before the language model; none: no pruning")
    parser.add_argument("--keep", action="append", type=int, help=f"tokens an image (default {KEEP})")
    parser.add_argument("--dropped", action="append", help="default: discard and stand in")
    parser.add_argument("--positions", action="append", help="default: contiguous and original")
    parser.add_argument("--limit", type=int, help="only the first questions")
    parser.add_argument(
        "--part", type=part, default=(1, 1), metavar="K/N", help="only every N-th question from the K-th"
    )
    parser.add_argument("--batch", type=int, default=8, help="questions at a time (default 8)")
    parser.add_argument("--timed", type=int, default=16, help="questions that are timed one by one (default 16)")
    arguments = parser.parse_args()
    methods = arguments.method or [
        name for name in list_pruners() if get_pruner(name, keep=64).where == "before the language model"
    ]
    policies = [
        Policy(positions=positions, dropped=dropped)
        for dropped in arguments.dropped or ("discard", "stand in")
        for positions in arguments.positions or ("contiguous", "original")
    ]
    settings = grid(methods, arguments.keep or KEEP, policies=policies)
    examples, new = load_questions(arguments.questions, arguments.limit)
    first, parts = arguments.part
    examples = examples[first - 1 :: parts]
    configuration = {
        "model": [arguments.model],
        "data": str(arguments.questions),
        "questions": fingerprint(examples),
        "weights": {arguments.model: model_version(arguments.model)},
        "settings": {arguments.model: [setting.described for setting in settings]},
        "batch": arguments.batch,
        "timed": arguments.timed,
        "max-new-tokens": LONGEST_ANSWER,
        "dtype": "auto",
        "device": "auto",
    }
    results = Results(arguments.out, configuration)
    subject = Subject(arguments.model, *load_model(arguments.model), LONGEST_ANSWER)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("asking", total=len(examples) * len(settings), completed=len(results.rows))
        left_out = evaluate(
            subject,
            examples,
            settings,
            results,
            batch=arguments.batch,
            timed=arguments.timed,
            progress=lambda rows: progress.advance(bar, rows),
        )
    if parts > 1:
        return
    path = arguments.out / "blind.json"
    if not path.exists():
        path.write_text(json.dumps(blind(subject, examples, arguments.batch), indent=1) + "\n")
    show(results, json.loads(path.read_text()), new)
    cases = draw_cases(subject, examples, settings, results)
    _, written = publish(results, {arguments.model: cases}, {arguments.model: left_out})
    print("written:", *written)


if __name__ == "__main__":
    main()
