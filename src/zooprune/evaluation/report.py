"""What a run found out, as tables: for the terminal, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zooprune.evaluation.metrics import FULL, RESAMPLES, arrange, compare, resample, summarise
from zooprune.evaluation.runner import Row

HOW_TIMED = (
    "Seconds are medians over {count} questions asked one at a time after one that does not count, every image encoded "
    "every time; the pruner's own work is in them. 'first token' is all but decoding."
)
HOW_SURE = (
    "Intervals hold 95 % of {resamples:,} paired bootstrap resamples of the questions, task by task. "
    "'score kept' is the mean over tasks of the score as a share of the unpruned model's."
)


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
        """Return it in Markdown."""
        lines = [_line(self.header), _line(["---", *["---:"] * (len(self.header) - 1)]), *map(_line, self.rows)]
        return "\n".join([f"### {self.title}", "", *lines, *(["", self.note] if self.note else [])])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def digest(rows: Sequence[Row], *, resamples: int = RESAMPLES) -> dict[str, dict[str, Any]]:
    """Return the figures of every model.

    Returns
    -------
    dict
        By model: `summary` (see `metrics.summarise`) and `comparisons` (see `metrics.compare`) of every method with
        the unpruned model, and of the first method with all others at the same budget.
    """
    found = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        answers = arrange(row for row in rows if row["model"] == model)
        pruned = [arm for arm in answers.arms if arm != FULL]
        pairs = [(arm, FULL) for arm in pruned]
        pairs += [(arm, other) for arm in pruned for other in pruned if arm[0] == pruned[0][0] != other[0]
                  if arm[1] == other[1]]  # fmt: skip
        weights = resample(answers.tasks, resamples=resamples)
        known = any(row["right"] is not None for row in answers.rows[FULL])
        found[model] = {
            "summary": summarise(answers, weights),
            "comparisons": [compare(answers, *pair, weights) for pair in pairs] if known else [],
            "timed": sum(bool(row["seconds"]) for row in answers.rows[FULL]),
            "resamples": resamples,
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
    ("pruner ms", lambda arm: _milliseconds(arm, "score", "select")),
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
        (arm["method"], keep(arm["keep"]), *(cells[number] for _, cells in filled))
        for number, arm in enumerate(summary)
    ]
    note = HOW_SURE.format(resamples=found["resamples"])
    if found["timed"]:
        note += " " + HOW_TIMED.format(count=found["timed"])
    draws = max(arm["draws"] for arm in summary)
    if draws > 1:
        note += f" Methods that draw are averaged over {draws} seeds."
    questions = f"{summary[0]['questions']:,} questions"
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
        (arm["method"], keep(arm["keep"]), *(_percent(arm["tasks"][task][name]) for task, name in pick))
        for arm in summary
    ]
    counts = ", ".join(f"{figures['questions']} {task}" for task, figures in summary[0]["tasks"].items())
    return Table("By task, in %", ("method", "keep", *header), rows, f"Accuracy where nothing else is said: {counts}.")


def paired(found: dict[str, Any]) -> Table:
    """Return the paired comparisons."""
    rows: list[tuple[str, ...]] = []
    for one in found["comparisons"]:
        (first, budget), (second, _) = one["first"], one["second"]
        low, high = (100 * value for value in one["interval"])
        gap = f"{100 * one['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
        rows.append((first, keep(budget), second, gap, str(one["wins"]), str(one["losses"]), f"{one['p']:.2g}"))
    return Table(
        "Question by question",
        ("method", "keep", "against", "accuracy, points", "only it right", "only the other", "p"),
        rows,
        "p is of the exact sign test on the questions that only one of both has right (McNemar), not corrected for "
        "the number of comparisons.",
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
    parts = [f"# {title(run)}", described(run)]
    for model, figures in found.items():
        parts += [f"## {model}", *(table.markdown() for table in tables(figures))]
        if cases.get(model):
            parts += [
                "### Worst cases",
                "Right with all tokens and wrong without, at the largest budgets where it occurs.",
            ]
        for case in cases.get(model, []):
            pictures = "".join(f"\n\n![what was kept]({path})" for path in case["pictures"])
            parts.append(f"- {case_line(case)}{pictures}")
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
        f"{case['method']}, keep {keep(case['keep'])}, {case['task']} {case['id']}: “{case['question']}” "
        f"“{case['unpruned']}” became “{case['pruned']}”{right}"
    )


def keep(value: int | float | None) -> str:
    """Return a budget as people write it."""
    return "all" if value is None else str(value)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _between(around: Sequence[float] | None) -> str:
    return "" if around is None else f"{100 * around[0]:.1f} to {100 * around[1]:.1f}"


def _milliseconds(arm: dict[str, Any], *stages: str) -> str:
    seconds = arm["seconds"]
    return "" if seconds is None else f"{1e3 * sum(seconds.get(stage, 0.0) for stage in stages):,.1f}"
