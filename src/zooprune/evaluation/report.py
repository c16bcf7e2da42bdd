"""What a run found out, as tables: for the terminal, for Markdown and for the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zooprune.evaluation.metrics import FULL, LEAST_PER_TASK, arrange, budget, compare, summarise
from zooprune.evaluation.runner import Row

HOW_TIMED = (
    "Seconds are medians over {count} questions asked one at a time after one that does not count, every image encoded "
    "every time; the pruner's own work is in them. 'first token' is all but decoding."
)
HOW_SURE = (
    "'score kept' is the mean over tasks of the score as a share of the unpruned model's. Its 95 % interval is a score "
    "interval (Wilson, Newcombe) that counts questions about the same scene as dependent."
)
TOO_FEW = f"No interval of 'score kept': a mean over tasks gets one from {LEAST_PER_TASK} questions a task."
ONE_SCENE = "No interval: all questions are about the same scene."


@dataclass(frozen=True)
class Table:
    """A table in words.

    Parameters
    ----------
    title, note : str
    header : tuple of str
    rows : list of tuple of str
        The first column is text, the others are figures.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""

    def markdown(self) -> str:
        """Return it in Markdown, as plain text whatever the cells hold."""
        lines = [_line(self.header), _line(["---", *["---:"] * (len(self.header) - 1)]), *map(_line, self.rows)]
        return "\n".join([f"### {plain(self.title)}", "", *lines, *(["", plain(self.note)] if self.note else [])])


#: What would start a tag, an entity, a link, a picture, emphasis, code, a formula, or the next cell of a table.
_MARKS = re.compile(r"([\\`*_\[\]|~$#!])")


def plain(text: str) -> str:
    """Return Markdown that shows a text as it is, in one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\1", text)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell if set(cell) <= set("-:") else plain(cell) for cell in cells) + " |"


def digest(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the figures of every model.

    Returns
    -------
    dict
        By model: `summary` (see `metrics.summarise`) and `comparisons` (see `metrics.compare`) of every method with
        the unpruned model, and of the first method with all others at the same budget; `timed`, the number of
        questions that were timed.
    """
    found = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        answers = arrange(row for row in rows if row["model"] == model)
        pruned = [arm for arm in answers.arms if arm != FULL]
        pairs = [(arm, FULL) for arm in pruned]
        pairs += [(arm, other) for arm in pruned for other in pruned if arm[0] == pruned[0][0] != other[0]
                  if budget(arm[1]) == budget(other[1])]  # fmt: skip
        known = any(row["right"] is not None for row in answers.rows[0])
        found[model] = {
            "summary": summarise(answers),
            "comparisons": [compare(answers, *pair) for pair in pairs] if known else [],
            "timed": sum(bool(row["seconds"]) for row in answers.rows[0]),
        }
    return found


#: Heading, and how to tell the cell from a summary's entry; a column without a figure is left out.
_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("score kept %", lambda arm: _percent(arm["kept_share"])),
    ("95 %", lambda arm: "" if arm["keep"] is None else _between(arm["kept_share_interval"])),
    ("accuracy %", lambda arm: _percent(arm["accuracy"])),
    ("same reply %", lambda arm: _percent(arm["agreement"])),
    ("evidence %", lambda arm: _percent(arm["evidence_recall"])),
    ("visual tokens", lambda arm: f"{arm['kept_tokens']:,.0f}"),
    ("GFLOPs", lambda arm: f"{arm['flops'] / 1e9:,.2f}"),
    ("KV MB", lambda arm: f"{arm['kv_bytes'] / 1e6:,.2f}"),
    ("pruner ms", lambda arm: _milliseconds(arm, "score", "select", "assign")),
    ("prefill ms", lambda arm: _milliseconds(arm, "prefill")),
    ("first token ms", lambda arm: _milliseconds(arm, "first_token")),
    ("total ms", lambda arm: _milliseconds(arm, "total")),
)
#: What fits into a terminal of 100 columns.
BRIEF = ("score kept %", "95 %", "accuracy %", "same reply %", "evidence %", "visual tokens", "prefill ms", "total ms")


def overview(found: dict[str, Any], *, columns: Sequence[str] | None = None) -> Table:
    """Return quality and cost of every arm of one model.

    Parameters
    ----------
    found : dict
        One model's part of `digest`.
    columns : sequence of str, optional
        Only these.
    """
    summary = found["summary"]
    shown = [(heading, cell) for heading, cell in _COLUMNS if columns is None or heading in columns]
    filled = [(heading, cells) for heading, cell in shown if any(cells := [cell(arm) for arm in summary])]
    rows = [
        (arm["method"], budget(arm["keep"]), *(cells[number] for _, cells in filled))
        for number, arm in enumerate(summary)
    ]
    note = HOW_SURE
    pruned = summary[1:]
    if pruned and all(arm["kept_share"] is not None and arm["kept_share_interval"] is None for arm in pruned):
        note = ONE_SCENE if summary[0]["scenes"] < 2 else TOO_FEW
    if found["timed"]:
        note += " " + HOW_TIMED.format(count=found["timed"])
    draws = max(arm["draws"] for arm in summary)
    if draws > 1:
        note += f" Methods that draw are averaged over {draws} seeds."
    questions = f"{summary[0]['questions']:,} questions"
    if summary[0]["scenes"] < summary[0]["questions"]:
        questions += f" about {summary[0]['scenes']:,} groups of scenes"
    return Table(questions, ("method", "keep", *(heading for heading, _ in filled)), rows, note)


def by_task(found: dict[str, Any]) -> Table:
    """Return the score of every task, F1 for "existence" with accuracy and yes-ratio beside it."""
    summary = found["summary"]
    header, pick = [], []
    for task, figures in summary[0]["tasks"].items():
        for name in [name for name in ("f1", "accuracy", "yes_ratio") if name in figures]:
            header.append(f"{task} {name.replace('_', ' ')}" if "f1" in figures else task)
            pick.append((task, name))
    rows = [
        (arm["method"], budget(arm["keep"]), *(_percent(arm["tasks"][task][name]) for task, name in pick))
        for arm in summary
    ]
    counts = ", ".join(f"{figures['questions']} {task}" for task, figures in summary[0]["tasks"].items())
    return Table("By task, in %", ("method", "keep", *header), rows, f"Accuracy where nothing else is said: {counts}.")


def paired(found: dict[str, Any]) -> Table:
    """Return the paired comparisons."""
    rows: list[tuple[str, ...]] = []
    for pair in found["comparisons"]:
        (first, keep), (second, _) = pair["first"], pair["second"]
        gap = f"{100 * pair['difference']:+.1f}"
        if pair["interval"] is not None:
            low, high = (100 * value for value in pair["interval"])
            gap += f" [{low:+.1f}, {high:+.1f}]"
        rows.append((first, budget(keep), second, gap, str(pair["wins"]), str(pair["losses"]), f"{pair['p']:.2g}"))
    return Table(
        "Question by question",
        ("method", "keep", "against", "accuracy, points", "only it right", "only the other", "p"),
        rows,
        "In brackets Newcombe's 95 % interval, over scenes. p is of the exact sign test on the scenes of which one "
        "method has more questions right (McNemar's where every question has its own), not corrected for the number "
        "of comparisons.",
    )


def markdown(run: dict[str, Any], found: dict[str, dict[str, Any]], cases: dict[str, list[dict[str, Any]]]) -> str:
    """Return the report in Markdown; pictures are linked, not embedded.

    Parameters
    ----------
    run : dict
        What ``run.json`` holds.
    found : dict
        See `digest`.
    cases : dict
        By model, the worst cases: what `Case.told` says, and the paths of their `pictures`.
    """
    parts = [f"# {plain(title(run))}", plain(described(run))]
    for model, figures in found.items():
        parts += [f"## {plain(model)}", *(table.markdown() for table in tables(figures))]
        if cases.get(model):
            parts += [
                "### Worst cases",
                "Right with all tokens and wrong without, at the largest budgets where it occurs.",
            ]
        for case in cases.get(model, []):
            pictures = "".join(f"\n\n![what was kept]({path})" for path in case["pictures"])
            parts.append(f"- {plain(case_line(case))}{pictures}")
    return "\n\n".join(parts) + "\n"


def tables(figures: dict[str, Any]) -> list[Table]:
    """Return all tables of one model."""
    return [overview(figures), by_task(figures), *([paired(figures)] if figures["comparisons"] else [])]


def title(run: dict[str, Any]) -> str:
    """Return the report's title."""
    configuration = run["configuration"]
    return f"Pruning: model {', '.join(configuration['model'])}, data {configuration['data']}"


def described(run: dict[str, Any]) -> str:
    """Return where and with what it was measured, in a sentence or two."""
    where, how = run["environment"], run["configuration"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    commit = f", commit {where['commit'][:12]}" if where["commit"] else ""
    machine = ", ".join(filter(None, (where["cpu"], f"{where['threads']} of {where['cores']} cores", where["gpu"])))
    return (
        f"{where['date']}, {versions}{commit}, Python {where['python']}, on {machine}; dtype {how['dtype']}, "
        f"device {how['device']}."
    )


def case_line(case: dict[str, Any]) -> str:
    """Return one worst case in a line."""
    right = f", right is {' or '.join(case['answers'])}" if case["answers"] else ""
    right += "" if case["pictures"] else " (no picture: the model cuts images up)"
    return (
        f"{case['method']}, keep {budget(case['keep'])}, {case['task']} {case['id']}: “{case['question']}” "
        f"“{case['unpruned']}” became “{case['pruned']}”{right}"
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _between(around: Sequence[float] | None) -> str:
    return "" if around is None else f"{100 * around[0]:.1f} to {100 * around[1]:.1f}"


def _milliseconds(arm: dict[str, Any], *stages: str) -> str:
    seconds = arm["seconds"]
    return "" if seconds is None else f"{1e3 * sum(seconds.get(stage, 0.0) for stage in stages):,.1f}"
