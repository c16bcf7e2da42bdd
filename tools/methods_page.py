"""Write docs/methods.md from the registry and the newest figures, and the table in README.md: make methods-page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from zooprune import list_pruners
from zooprune.catalogue import Entry, catalogue

#: Accuracy in percent by method, what becomes of dropped tokens, and budget.
Figures = dict[tuple[str, str, int], float]
#: Number of tokens, budget and images of a measured choice.
Case = tuple[int, int, int]
#: Median time of choosing in seconds, by method and case.
Times = dict[str, dict[Case, float]]

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "methods.md", ROOT / "README.md"
#: The budgets that all methods were measured with; the first is that of the page's table.
BUDGETS = (64, 16)
KEEP = BUDGETS[0]
#: What the times in the page's table are of.
CASE: Case = (576, KEEP, 1)
#: What stands around the table in README.md.
BEGIN, END = "<!-- begin: make methods-page writes this table -->\n", "<!-- end -->"
#: Heading, and what becomes of dropped tokens.
POLICIES = (("discarding", "discard"), ("standing in", "stand in"))

HEAD = """\
<!-- make methods-page writes this page from docstrings and the newest figures: edit those, not this page. -->

# Methods

This page describes every pruning method of zooprune: how it chooses tokens, its formula, its options, what choosing
costs, and how many questions of the bundled benchmark the model then answers correctly. To find the method for your
task, start with [Choose a method and a budget](choosing.md). `zooprune methods` prints the table, and
`zooprune methods NAME` one method.

A formula shows what the code of this library computes. In it, `next` is the token that is kept next, words such as
`power` are options of the method, and the lines below it explain the other symbols.

![One scene and {keep} of its 576 tokens under every method, with the model's answers](images/methods.png)

`zooprune gallery --save docs/images/methods.png` draws this picture: one scene and {keep} tokens under every method.
Patches in colour are kept, those in a frame are mixtures of several tokens. Under each panel is the model's answer. One
question says little about a method: the table has the accuracy on all questions.

| column | |
|---|---|
| year | of the paper's first version on arXiv |
| where | "before" the language model, or "inside" it |
| reads | what is read beside the image's tokens: attention or keys of the vision tower, the question's embeddings |
| question | whether the choice depends on the question |
| count | "exact" meets the budget; "native" lets the image decide; where both are possible, "exact" is the default |
| merges | whether kept tokens become mixtures of several tokens |
| seed | whether the choice is drawn; "sampled" means only on models whose [sensitivity](models.md) is sampled |
| families | how many [model families](models.md) give what it reads, take its inputs and can be pruned there |
{measured}

"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")


def readme() -> str:
    """Return README.md with the newest table of quality."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    columns = [(keep, dropped) for keep in BUDGETS for _, dropped in POLICIES]
    figures = measured()[1]
    names = {name for name, _, _ in figures} & set(list_pruners())
    # The best first, by the first column.
    ranked = sorted(names, key=lambda name: (-figures.get((name, columns[0][1], KEEP), 0), name))
    lines = [
        f"| method | {' | '.join(f'{keep}, {dropped}' for keep, dropped in columns)} |",
        "|---|" + "---:|" * len(columns),
        *(f"| [{name}](docs/methods.md#{name}) | {' | '.join(cells(figures, name, columns))} |" for name in ranked),
    ]
    return before + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2]


def cells(figures: Figures, name: str, columns: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield the figures of a method, empty where it was not measured."""
    for keep, dropped in columns:
        value = figures.get((name, dropped, keep))
        yield "" if value is None else f"{value:.1f}"


def page() -> str:
    """Return the page."""
    entries, (source, figures), (cost, times) = catalogue(), measured(), timed()
    accuracy = (
        f"| {', '.join(heading for heading, _ in POLICIES)} | accuracy on the bundled benchmark with {KEEP} tokens, "
        f"in percent, from `{source.relative_to(ROOT)}`: dropped tokens discarded, or kept tokens "
        "[standing in](standing-in.md) for them; [intervals and other budgets](findings.md#every-method) |"
    )
    lines = [HEAD.format(keep=KEEP, measured=f"{accuracy}\n{cost}"), *table(entries, figures, times)]
    for entry in entries:
        lines += ["", f"## {entry.name}", "", *section(entry, figures, times.get(entry.name, {}))]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def newest(name: str) -> tuple[Path, list[dict[str, Any]]]:
    """Return the newest file of a measurement, and its rows."""
    source = max((ROOT / "benchmarks" / "results").glob(f"{name}-*.json"))
    return source, json.loads(source.read_text())["rows"]


def measured() -> tuple[Path, Figures]:
    """Return the newest file of figures, and what it holds."""
    source, rows = newest("methods")
    values: dict[tuple[str, str, int], list[float]] = {}
    for row in rows:
        # Methods that draw have a row per seed.
        values.setdefault((row["method"], row["dropped"], row["keep"]), []).append(100 * row["accuracy"]["all"])
    return source, {arm: mean(found) for arm, found in values.items()}


def timed() -> tuple[str, Times]:
    """Return how the newest times of choosing were measured, as a row of the table of columns, and the times."""
    source, rows = newest("choosing")
    times: Times = {}
    for row in rows:
        times.setdefault(row["provider"], {})[row["tokens"], row["keep"], row["images"]] = row["p50"]
    threads, repeats = rows[0]["environment"]["threads"], rows[0]["repeats"]
    command = f"OMP_NUM_THREADS={threads} .venv/bin/python benchmarks/choosing.py --repeats {repeats}"
    told = (
        f"| choosing, ms | median time to choose {words(CASE)} once image and question are encoded, from "
        f"`{source.relative_to(ROOT)}`: random features in the widths of LLaVA-1.5-7B, "
        f"{'one thread' if threads == 1 else f'{threads} threads'} of a CPU (`{command}`); compare methods and not "
        "absolute times; empty for methods inside the language model, which choose while it runs; "
        "[more about this cost](performance.md#measured) |"
    )
    return told, times


def words(case: Case) -> str:
    """Return what was chosen."""
    tokens, keep, images = case
    return f"{keep} of {tokens:,} tokens" + (f" in each of {images} images" if images > 1 else "")


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds, with a decimal where it is short."""
    return f"{1000 * seconds:,.1f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def table(entries: tuple[Entry, ...], figures: Figures, times: Times) -> Iterator[str]:
    """Yield the lines of the table."""
    headings = ["method", "paper", "year", "where", "reads", "question", "count", "merges", "seed", "families"]
    numbers = [*(heading for heading, _ in POLICIES), "choosing, ms"]
    yield f"| {' | '.join([*headings, *numbers])} |"
    yield "|" + "---|" * len(headings) + "---:|" * len(numbers)
    for one in entries:
        facts = [
            f"[{one.name}](#{one.name})",
            f"[{one.arxiv}](https://arxiv.org/abs/{one.arxiv})" if one.arxiv else "",
            str(one.year or ""),
            one.where.partition(" ")[0],
            ", ".join(one.reads),
            "yes" if one.query_aware else "",
            one.count,
            "yes" if one.merges else "",
            one.seed,
            one.hosts,
        ]
        accuracy = cells(figures, one.name, [(KEEP, dropped) for _, dropped in POLICIES])
        cost = milliseconds(times[one.name][CASE]) if one.name in times else ""
        yield f"| {' | '.join([*facts, *accuracy, cost])} |"


def section(entry: Entry, figures: Figures, times: dict[Case, float]) -> Iterator[str]:
    """Yield the lines about one method; a paragraph is one line, since a line may begin with what makes a list."""
    for paragraph in entry.idea:
        yield from (as_it_is(paragraph), "")
    if entry.formula:
        yield from ("```text", *entry.formula.splitlines(), "```", "")
    yield from (f"Source: {as_it_is(entry.source)}", "")
    for option in entry.options:
        yield f"- `{option.name}` ({as_it_is(option.kind)}; default {option.default}): {as_it_is(option.meaning)}"
    columns = [(keep, heading, dropped) for keep in BUDGETS for heading, dropped in POLICIES]
    values = list(cells(figures, entry.name, [(keep, dropped) for keep, _, dropped in columns]))
    if all(values):
        told = (
            f"{value} % ({keep} tokens, {heading})" for value, (keep, heading, _) in zip(values, columns, strict=True)
        )
        yield from ("", f"Accuracy on the bundled benchmark: {'; '.join(told)}.")
    if times:
        told = (f"{milliseconds(value)} ms for {words(case)}" for case, value in times.items())
        yield from ("", f"Median time of choosing: {'; '.join(told)}.")


def as_it_is(text: str) -> str:
    """Return Markdown that shows a text of a docstring as it is; code in backticks stays code."""
    pieces = text.split("`")
    # Every other piece stands between backticks.
    pieces[::2] = [piece.replace("*", r"\*").replace("<", "&lt;") for piece in pieces[::2]]
    return "`".join(pieces)


if __name__ == "__main__":
    main()
