"""Run a table of the paper with lmms-eval, row by row; a row that has results is not run again.

A row runs again when the questions or the model's arguments are others: after a trial with --limit, for one.

python recipes/run.py llava-1.5-7b --out runs/llava-1.5-7b
python recipes/check.py runs/llava-1.5-7b
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from recipe import FOLDER, Recipe, Row, folder_of, known_recipes, load_recipe
from zooprune import list_pruners

#: Written into a row's folder: what was asked of it and has results.
FINISHED = "finished.jsonl"


def command(recipe: Recipe, row: Row, options: argparse.Namespace) -> list[str]:
    """Return the command line that runs one row."""
    arguments = dict(recipe.model_args)
    if "system_prompt" in arguments:
        arguments["system_prompt"] = FOLDER / arguments["system_prompt"]
    arguments |= dict(row.arguments) | dict(pair.split("=", 1) for pair in options.set)
    tasks = options.tasks or list(dict.fromkeys(column.task for column in recipe.benchmarks.values()))
    launcher = ["accelerate.commands.launch", "--num_processes", str(options.processes), "-m"]
    return [
        *(sys.executable, "-m"),
        *(launcher if options.processes > 1 else []),
        *("lmms_eval", "--model", "zooprune"),
        *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items() if value != "")),
        *("--tasks", ",".join(tasks)),
        *("--include_path", str(options.include_path)),
        *("--batch_size", str(options.batch_size)),
        *([] if options.limit is None else ["--limit", str(options.limit)]),
        *("--output_path", str(options.out / row.name)),
        "--log_samples",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help=f"one of {', '.join(known_recipes())}, or a JSON file")
    parser.add_argument("--out", type=Path, help="folder of the results (default runs/RECIPE)")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="these methods alone")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a model argument; none if empty"
    )
    parser.add_argument("--tasks", nargs="+", help="other tasks than the table's")
    parser.add_argument("--include-path", type=Path, default=FOLDER / "tasks", help="where further tasks are described")
    parser.add_argument("--limit", type=int, help="the first questions of each task alone")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="one GPU each")
    parser.add_argument("--print", action="store_true", help="print the commands and run nothing")
    options = parser.parse_args()
    if wrong := [pair for pair in options.set if "=" not in pair]:
        parser.error(f"--set {wrong[0]}: write it as NAME=VALUE")
    try:
        recipe = load_recipe(options.recipe)
    except ValueError as error:
        parser.error(str(error))
    options.out = options.out or folder_of(options.recipe)
    wanted = [row for row in recipe.rows if not options.only or row.arguments["method"] in options.only]
    rows = [row for row in wanted if row.arguments["method"] in ("none", *list_pruners())]
    if absent := [row.name for row in wanted if row not in rows]:
        print(f"left out, not among 'zooprune methods': {', '.join(absent)}", file=sys.stderr)
    for row in rows:
        line = command(recipe, row, options)
        if options.print:
            print(shlex.join(line))
        elif asked(line) not in finished(options.out / row.name):
            before = results(options.out / row.name)
            subprocess.run(line, check=False)
            # lmms-eval's exit code is 0 also after an error.
            if results(options.out / row.name) == before:
                print(f"{row.name} gave no results; the reason stands above", file=sys.stderr)
                return 1
            with (options.out / row.name / FINISHED).open("a") as file:
                file.write(json.dumps(asked(line)) + "\n")
    return 0


def asked(line: list[str]) -> dict[str, str]:
    """Return the options of a command on which its figures depend."""
    names = ("--model_args", "--tasks", "--limit")
    return {name: line[line.index(name) + 1] for name in names if name in line}


def finished(folder: Path) -> list[dict[str, str]]:
    """Return what was asked of a row and has results."""
    file = folder / FINISHED
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def results(folder: Path) -> set[Path]:
    """Return the results files of a row."""
    return set(folder.rglob("*_results.json"))


if __name__ == "__main__":
    sys.exit(main())
