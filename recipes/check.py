"""Say how far a run is from the figures on file, cell by cell.

    python recipes/check.py runs/llava-1.5-7b

A cell is off when it lies beyond its column's tolerance from every figure on file. Exit code 1 if one is, 2 if there
is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from recipe import Recipe, known_recipes, load_recipe, name_of

Scores = dict[str, dict[str, float]]


def read_runs(path: Path) -> dict[str, dict[str, Scores]]:
    """Return scores by model, row, task and metric; of repeated runs the newest of whole tasks counts."""
    files = [path] if path.is_file() else sorted(path.rglob("*_results.json"), key=lambda file: file.name)
    stored = [(file, json.loads(file.read_text())) for file in files]
    # The last one counts: a run of whole tasks before any of their first questions.
    stored.sort(key=lambda pair: pair[1]["config"]["limit"] in (None, -1))
    runs: dict[str, dict[str, Scores]] = defaultdict(lambda: defaultdict(dict))
    for file, result in stored:
        config = result["config"]
        if config["model"] != "zooprune":
            raise ValueError(f"{file} is a run of --model {config['model']}; only those of zooprune can be compared")
        if config["limit"] not in (None, -1):
            print(f"note: {file} was run with --limit {config['limit']}, its figures are not those of whole tasks")
        given = (pair.split("=", 1) for pair in config["model_args"].split(",") if "=" in pair)
        arguments = {"pretrained": "bundled", "method": "zoo"} | dict(given)
        scores = runs[arguments["pretrained"]][name_of(arguments)]
        for task, values in result["results"].items():
            # lmms-eval names a score "metric,filter".
            numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
            scores[task] = {name.split(",")[0]: value for name, value in numbers.items()}
    return runs


def compare(recipe: Recipe, runs: dict[str, Scores]) -> int:
    """Print the comparison and return how many cells are off."""
    print(f"{recipe.title}\n" + "".join(f"  {name}: {source}\n" for name, source in recipe.sources.items()))
    sources = list(recipe.sources)
    line = "{:16}{:10}{:>9}" + "{:>20}" * len(sources) + "  {}"
    print(line.format("row", "column", "run", *sources, ""))
    off, missing = 0, []
    figures: dict[str, dict[str, float]] = {}
    for row in recipe.rows:
        if row.name not in runs:
            missing.append(f"{row.name}: not run")
            continue
        figures[row.name] = {}
        for column, benchmark in recipe.benchmarks.items():
            expected = {source: row.figures[source][column] for source in row.figures if column in row.figures[source]}
            got = benchmark.figure(runs[row.name])
            if got is None:
                reason = "not in the results" if benchmark.metrics else "scored by the benchmark's own server"
                missing.append(f"{row.name}, {column}: {reason}")
                continue
            figures[row.name][column] = got
            away = [abs(got - value) for value in expected.values()]
            wrong = bool(away) and min(away) > benchmark.tolerance
            off += wrong
            # Adding zero makes -0.00 a plain zero.
            shown = [
                f"{expected[name]:.2f} ({round(got - expected[name], 2) + 0:+.2f})" if name in expected else ""
                for name in sources
            ]
            verdict = f"off by more than {benchmark.tolerance:g}" if wrong else "" if away else "no figure on file"
            print(line.format(row.name, column, f"{got:.2f}", *shown, verdict))
    for name, kept in averages(recipe, figures).items():
        print(f"{name}: {kept}")
    if missing:
        print("missing:\n" + "\n".join(f"  {cell}" for cell in missing))
    print(f"{off} off, {sum(map(len, figures.values())) - off} not off, {len(missing)} missing\n")
    return off


def averages(recipe: Recipe, figures: dict[str, dict[str, float]]) -> dict[str, str]:
    """Return how much of the unpruned model every row keeps, in the run and, over the same columns, on file."""
    rows = {row.name: row for row in recipe.rows}
    kept = {}
    for name in figures:
        columns = [column for column in figures[name] if column in figures.get("none", {})]
        if name == "none" or not columns:
            continue
        parts = [f"keeps {mean_ratio(figures[name], figures['none'], columns):.2f} % over {len(columns)} columns"]
        for source, values in rows[name].figures.items():
            base = rows["none"].figures.get(source, {})
            shared = [column for column in columns if column in values and column in base]
            if shared == columns:
                parts.append(f"{source} {mean_ratio(values, base, columns):.2f} %")
        kept[name] = ", ".join(parts)
    return kept


def mean_ratio(values: Any, base: Any, columns: list[str]) -> float:
    """Return the mean of the columns' ratios, in percent."""
    return 100 * sum(values[column] / base[column] for column in columns) / len(columns)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of results, or one of lmms-eval's results files")
    parser.add_argument("--recipe", help="compare with this table whatever the model (default: the model's tables)")
    options = parser.parse_args()
    try:
        runs = read_runs(options.run)
        if not runs:
            raise ValueError(f"there is no *_results.json in {options.run}; give the folder that run.py wrote")
        off = 0
        for pretrained, rows in runs.items():
            names = [options.recipe] if options.recipe else known_recipes()
            recipes = [load_recipe(name) for name in names]
            if not options.recipe:
                recipes = [recipe for recipe in recipes if recipe.model_args["pretrained"] == pretrained]
            if not recipes:
                raise ValueError(f"there is no table for {pretrained}; name one with --recipe")
            off += sum(compare(recipe, rows) for recipe in recipes)
    except (ValueError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
