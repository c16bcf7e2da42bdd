"""The results of a run as sentences and tables: for the terminal, for Markdown and for the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zooprune.evaluation.metrics import FULL, LEAST_PER_TASK, arrange, budget, compare, summarise
from zooprune.evaluation.runner import Row

HOW_TIMED = (
    "Times are medians over {count} asked one by one after a warm-up. Images are encoded every time, and the "
    "pruner's own work is included. 'first token' is the total without decoding. 'speed-up' is the unpruned model's "
    "total over the method's."
)
HOW_SURE = (
    "'score kept' is the mean over tasks of the score as a share of the unpruned model's. Its 95 % interval is a score "
    "interval (Wilson, Newcombe) that counts questions about the same scene as dependent."
)
HOW_SAME = (
    "'same reply' is the share of replies that equal the unpruned model's. It does not say how many are right: the "
    "data has no answers. Its 95 % interval is Wilson's and counts questions about the same scene as dependent."
)
TOO_FEW = f"There is no interval of 'score kept': a mean over tasks takes at least {LEAST_PER_TASK} questions per task."
ONE_SCENE = "There is no interval: all questions are about the same scene."
LOST = "Right with all tokens and wrong without, at the largest budgets where it occurs."
CHANGED = "The reply differs from the unpruned model's, at the largest budgets where it occurs."
#: What `times` says of costs that are within 5 % of each other.
SAME = "the same"
#: The headline names the smallest budget that keeps this much.
ENOUGH = 0.95


@dataclass(frozen=True)
class Table:
    """A table of text.

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
        """Return the table in Markdown; marks in the cells are escaped."""
        lines = [_line(self.header), _line(["---", *["---:"] * (len(self.header) - 1)]), *map(_line, self.rows)]
        return "\n".join([f"### {plain(self.title)}", "", *lines, *(["", plain(self.note)] if self.note else [])])


#: Marks that would start a tag, an entity, a link, a picture, emphasis, code, a formula, or the next cell of a table.
_MARKS = re.compile(r"([\\`*_\[\]|~$#!])")


def plain(text: str) -> str:
    """Return Markdown that shows a text unchanged, in one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\1", text)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell if set(cell) <= set("-:") else plain(cell) for cell in cells) + " |"


def digest(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return the figures of every model.

    Returns
    -------
    dict
        By model: `answers_known`, whether the data has answers; `summary` (see `metrics.summarise`); `comparisons` (see
        `metrics.compare`) of every method with the unpruned model, and of the first method with all others at the same
        budget, if answers are known; `timed`, the number of questions that were timed.
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
            "answers_known": known,
            "summary": summarise(answers),
            "comparisons": [compare(answers, *pair) for pair in pairs] if known else [],
            "timed": sum(bool(row["seconds"]) for row in answers.rows[0]),
        }
    return found


#: Heading, and a function from a summary's entry and the unpruned model's to the cell. Empty columns are left out.
_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any], dict[str, Any]], str]], ...] = (
    ("score kept %", lambda arm, full: _percent(arm["kept_share"])),
    ("95 %", lambda arm, full: "" if arm["keep"] is None else _between(_interval(arm))),
    ("accuracy %", lambda arm, full: _percent(arm["accuracy"])),
    ("same reply %", lambda arm, full: _percent(arm["agreement"])),
    ("evidence %", lambda arm, full: _percent(arm["evidence_recall"])),
    ("visual tokens", lambda arm, full: f"{arm['kept_tokens']:,.0f}"),
    ("GFLOPs", lambda arm, full: f"{arm['flops'] / 1e9:,.2f}"),
    ("KV MB", lambda arm, full: f"{arm['kv_bytes'] / 1e6:,.2f}"),
    ("pruner ms", lambda arm, full: _milliseconds(arm, "score", "select", "assign")),
    ("prefill ms", lambda arm, full: _milliseconds(arm, "prefill")),
    ("first token ms", lambda arm, full: _milliseconds(arm, "first_token")),
    ("total ms", lambda arm, full: _milliseconds(arm, "total")),
    ("speed-up", lambda arm, full: _speed_up(arm, full)),
)
#: Without answers, the interval is that of 'same reply' and stands beside it.
_UNKNOWN = ("same reply %", "95 %", *(heading for heading, _ in _COLUMNS if heading not in ("same reply %", "95 %")))
#: Columns that fit into a terminal of 80 characters.
BRIEF = ("score kept %", "95 %", "accuracy %", "visual tokens", "total ms", "speed-up")
_BRIEF_UNKNOWN = ("same reply %", *BRIEF)


def overview(found: dict[str, Any], *, brief: bool = False) -> Table:
    """Return quality and cost of every arm of one model.

    Parameters
    ----------
    found : dict
        One model's part of `digest`.
    brief : bool
        Whether the table must fit into a terminal.
    """
    summary, known = found["summary"], found["answers_known"]
    order = [heading for heading, _ in _COLUMNS] if known else _UNKNOWN
    wanted = order if not brief else BRIEF if known else _BRIEF_UNKNOWN
    cell = dict(_COLUMNS)
    columns = {
        heading: cells
        for heading in order
        if heading in wanted and any(cells := [cell[heading](arm, summary[0]) for arm in summary])
    }
    rows = [
        (arm["method"], budget(arm["keep"]), *(cells[number] for cells in columns.values()))
        for number, arm in enumerate(summary)
    ]
    note = HOW_SURE if known else HOW_SAME
    if len(summary) > 1 and "95 %" not in columns:
        missing = ONE_SCENE if summary[0]["scenes"] < 2 else TOO_FEW
        note = missing if known else f"{HOW_SAME.partition(' Its 95')[0]} {missing}"
    if found["timed"]:
        note += " " + HOW_TIMED.format(count=_questions(found["timed"]))
    draws = max(arm["draws"] for arm in summary)
    if draws > 1:
        note += f" Methods that draw random numbers are averaged over {draws} seeds."
    questions = _questions(summary[0]["questions"])
    if summary[0]["scenes"] < summary[0]["questions"]:
        questions += f" about {summary[0]['scenes']:,} groups of scenes"
    return Table(questions, ("method", "keep", *columns), rows, note)


def headline(found: dict[str, Any]) -> str:
    """Return the main result of one model in a sentence; empty if nothing was pruned.

    It is about the smallest budget that keeps at least `ENOUGH` of the score (of the replies, if no answers are known).
    """
    full, *pruned = found["summary"]
    measure = "kept_share" if full["kept_share"] is not None else "agreement"
    pruned = [arm for arm in pruned if arm[measure] is not None]
    if not pruned:
        return ""
    good = [arm for arm in pruned if arm[measure] >= ENOUGH]
    if good:
        best = min(good, key=lambda arm: (arm["kept_tokens"], -arm[measure]))
    else:
        best = max(pruned, key=lambda arm: (arm[measure], -arm["kept_tokens"]))
    does = "keeps {} of the score" if measure == "kept_share" else "gives the same reply to {} of the questions"
    share, around = f"{_percent(best[measure])} %", _between(best[f"{measure}_interval"])
    if around:
        share += f" ({around})"
    sentence = (
        f"{best['method']} {does.format(share)} with {best['kept_tokens']:,.0f} of "
        f"{full['kept_tokens']:,.0f} visual tokens per question"
    )
    if best["seconds"] is not None:
        speed = times(full["seconds"]["total"], best["seconds"]["total"])
        sentence += " in the same time" if speed == SAME else f" and answers {speed}"
    return sentence + ("." if good else f"; nothing that was tried reaches {100 * ENOUGH:.0f} %.")


def times(before: float, after: float, better: str = "faster", worse: str = "slower") -> str:
    """Return how a cost changed, such as "3.1x faster", with a factor of 1 or more."""
    if not before or not after:
        return ""
    factor, word = (before / after, better) if after <= before else (after / before, worse)
    return f"{factor:,.1f}x {word}" if factor >= 1.05 else SAME


def by_task(found: dict[str, Any]) -> Table:
    """Return the score of every task, or how many replies stay if no answers are known.

    The score of "existence" is F1; accuracy and the share of "yes" are shown beside it.
    """
    summary, known = found["summary"], found["answers_known"]
    header, pick = [], []
    for task, figures in summary[0]["tasks"].items():
        for name in [name for name in ("f1", "accuracy", "yes_ratio") if name in figures] if known else ["agreement"]:
            header.append(f"{task} {name.replace('_', ' ')}" if "f1" in figures and known else task)
            pick.append((task, name))
    rows = [
        (arm["method"], budget(arm["keep"]), *(_percent(arm["tasks"][task][name]) for task, name in pick))
        for arm in summary
    ]
    counts = ", ".join(f"{figures['questions']} {task}" for task, figures in summary[0]["tasks"].items())
    what = "Accuracy, unless the heading says otherwise" if known else "Same reply as the unpruned model"
    return Table("By task, in %", ("method", "keep", *header), rows, f"{what}. Questions: {counts}.")


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
        "Brackets hold Newcombe's 95 % interval, over scenes. p is the p-value of the exact sign test over scenes: a "
        "scene counts for the method that has more of its questions right. If every question has a scene of its own, "
        "this is McNemar's test. The p-values are not corrected for the number of comparisons.",
    )


def markdown(
    run: dict[str, Any],
    found: dict[str, dict[str, Any]],
    cases: dict[str, list[dict[str, Any]]],
    left_out: dict[str, dict[str, str]],
) -> str:
    """Return the report in Markdown; pictures are linked, not embedded.

    Parameters
    ----------
    run : dict
        The content of ``run.json``.
    found : dict
        See `digest`.
    cases : dict
        By model, the worst cases: `Case.told`, and the paths of their `pictures`.
    left_out : dict
        By model, the ids of questions that were not asked, with the reasons.
    """
    parts = [f"# {plain(title(run))}", plain(described(run))]
    for model, figures in found.items():
        sentence = headline(figures)
        parts += [f"## {plain(model)}", *([plain(sentence)] if sentence else [])]
        if left_out.get(model):
            parts += [not_asked(left_out[model])]
            parts += ["\n".join(f"- {plain(f'{name}: {why}')}" for name, why in left_out[model].items())]
        parts += [table.markdown() for table in tables(figures)]
        if cases.get(model):
            parts += ["### Worst cases", LOST if figures["answers_known"] else CHANGED]
        for case in cases.get(model, []):
            pictures = "".join(f"\n\n![what was kept]({path})" for path in case["pictures"])
            parts.append(f"- {plain(case_line(case))}{pictures}")
    return "\n\n".join(parts) + "\n"


def tables(figures: dict[str, Any]) -> list[Table]:
    """Return all tables of one model."""
    several = figures["answers_known"] or len(figures["summary"][0]["tasks"]) > 1
    return [
        overview(figures),
        *([by_task(figures)] if several else []),
        *([paired(figures)] if figures["comparisons"] else []),
    ]


def not_asked(left_out: dict[str, str]) -> str:
    """Return the sentence above the list of questions that were left out."""
    were = "was" if len(left_out) == 1 else "were"
    return f"{_questions(len(left_out))} {were} not asked, because an image cannot be read:"


def title(run: dict[str, Any]) -> str:
    """Return the report's title."""
    configuration = run["configuration"]
    return f"Pruning: model {', '.join(configuration['model'])}, data {configuration['data']}"


def described(run: dict[str, Any]) -> str:
    """Return machine, versions and options in a sentence."""
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
    right += "" if case["pictures"] else " (no picture: the model cuts images into tiles)"
    return (
        f"{case['method']}, keep {budget(case['keep'])}, {case['task']} {case['id']}: “{case['question']}” "
        f"“{case['unpruned']}” became “{case['pruned']}”{right}"
    )


def _questions(count: int) -> str:
    return f"{count:,} question" + ("" if count == 1 else "s")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _between(around: Sequence[float] | None) -> str:
    return "" if around is None else f"{100 * around[0]:.1f} to {100 * around[1]:.1f}"


def _milliseconds(arm: dict[str, Any], *stages: str) -> str:
    seconds = arm["seconds"]
    return "" if seconds is None else f"{1e3 * sum(seconds.get(stage, 0.0) for stage in stages):,.1f}"


def _interval(arm: dict[str, Any]) -> Sequence[float] | None:
    """Return the interval of the share of the score that is kept, or of equal replies if no answers are known."""
    found: Sequence[float] | None = arm["kept_share_interval" if arm["accuracy"] is not None else "agreement_interval"]
    return found


def _speed_up(arm: dict[str, Any], full: dict[str, Any]) -> str:
    if arm["keep"] is None or arm["seconds"] is None or full["seconds"] is None:
        return ""
    return f"{full['seconds']['total'] / arm['seconds']['total']:.1f}x"
