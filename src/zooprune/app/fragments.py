"""What the page shows, as HTML. All text that a visitor or a model wrote is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from PIL import Image
from torch import Tensor

from zooprune.app.workbench import Choice, Cost, Look
from zooprune.asking import Answer
from zooprune.picture import CannotDrawError, Drawn, draw_each
from zooprune.pruners import pruner_class

_STAGES = ("encode", "score", "select", "assign", "prefill", "decode")

#: Answers by `zooprune.app.workbench.Look.key`.
Answers = Mapping[str, Answer]


def results(look: Look, answers: Answers, expected: str | None) -> str:
    """Return what methods keep, what that costs, and the answers that there are.

    Parameters
    ----------
    look : Look
    answers : mapping of str to Answer
        Those of other questions and plans are not shown.
    expected : str, optional
        The right answer, if it is known.
    """
    methods = "".join(_method(look, choice) for choice in look.choices)
    return f'<div class="zoo-methods">{methods}</div>{_table(look, answers, expected)}{_link(look)}'


def alert(sentence: str) -> str:
    """Return what went wrong, which a screen reader says at once."""
    return f'<p class="zoo-alert" role="alert">{escape(_capitalised(sentence))}.</p>'


def status(sentence: str) -> str:
    """Return what is going on."""
    return f'<p class="zoo-status" role="status">{escape(sentence)}</p>' if sentence else ""


def _capitalised(sentence: str) -> str:
    """Begin with a capital, unless the first word is a name of a file or an option."""
    first = sentence.partition(" ")[0]
    return sentence[:1].upper() + sentence[1:] if first.isalpha() else sentence


def _method(look: Look, choice: Choice) -> str:
    name, kept, total = choice.plan.method, choice.cost.visual_tokens, look.full.visual_tokens
    return (
        f'<section class="zoo-method" aria-label="{escape(name)}"><h2>{escape(name)}</h2>'
        f"<p><strong>{kept:,} of {total:,}</strong> visual tokens kept ({kept / total:.0%}), "
        f"chosen in {choice.seconds * 1e3:.0f} ms</p>{_figures(look, choice)}</section>"
    )


def _figures(look: Look, choice: Choice) -> str:
    """Return the pictures of what a method keeps, or the sentence why there are none."""
    if len(choice.images) != len(look.seen):
        return _cannot_draw()
    found, label = [], pruner_class(choice.plan.method).scores_label
    for picture, seen, size, report in zip(look.pictures, look.seen, look.sizes, choice.images, strict=True):
        try:
            views = draw_each(seen, [report], size=size)
        except CannotDrawError:
            return _cannot_draw()
        # Methods that choose by distances alone score all tokens alike.
        scored = label if _differ(report.selection.scores) else None
        found += [_pair(picture.name, view, choice.plan.method, scored) for view in views]
    return "".join(found)


def _cannot_draw() -> str:
    return "<p>This model reads a picture as several tiles, which this page cannot draw. All figures are shown.</p>"


def _pair(name: str, view: Drawn, method: str, label: str | None) -> str:
    """Return the kept patches of one view, and the map of scores if there is a label for them."""
    part = f"{name}, {view.label}" if view.label else name
    kept = f"{part}: the {view.kept} patches that {method} keeps are in colour, the others are grey"
    count = (
        f"{_capitalised(view.label)}: {view.kept:,} of {view.total:,} patches kept" if view.label else "Kept patches"
    )
    figures = [_figure(view.pictures["kept"], kept, count)]
    if "scores" in view.pictures and label is not None:
        caption = (
            f"{escape(_capitalised(label))}, by rank "
            '<span class="zoo-legend">low <span class="zoo-scale"></span> high</span>'
        )
        figures.append(_figure(view.pictures["scores"], f"{part}: map of the {label} of every patch, by rank", caption))
    return f'<div class="zoo-pair">{"".join(figures)}</div>'


def _differ(scores: Tensor | None) -> bool:
    return scores is not None and bool((scores != scores[0]).any())


def _figure(image: Image.Image, alt: str, caption: str) -> str:
    """Return an image inside the page: nothing that a visitor could see at another's address."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img alt="{escape(alt)}" width="{image.width}" height="{image.height}" '
        f'src="data:image/jpeg;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _table(look: Look, answers: Answers, expected: str | None) -> str:
    plans = [None, *(choice.plan for choice in look.choices)]
    costs = [look.full, *(choice.cost for choice in look.choices)]
    given = [answers.get(look.key(plan)) for plan in plans]
    names = ["All tokens", *(choice.plan.method for choice in look.choices)]
    rows = [_row("Answer", _answers(given))] if any(given) else []
    if expected is not None and any(given):
        rows.append(f'<tr><th scope="row">Right answer</th><td colspan="{len(names)}">{escape(expected)}</td></tr>')
    rows += [
        _row("Visual tokens", _less(costs, lambda cost: cost.visual_tokens, "{:,}", "fewer")),
        _row("Prompt tokens", _less(costs, lambda cost: cost.prompt_tokens, "{:,}", "fewer")),
        _row("Prefill, GFLOPs", _less(costs, lambda cost: cost.prefill_flops / 1e9, "{:,.2f}", "less")),
        _row("KV cache, MB", _less(costs, lambda cost: cost.kv_cache_bytes / 1e6, "{:,.2f}", "less")),
    ]
    if any(given):
        rows.append(f'<tr><th scope="rowgroup" class="zoo-part" colspan="{1 + len(names)}">Time, ms</th></tr>')
        rows += [_row(_capitalised(stage), _seconds(given, stage)) for stage in _STAGES]
        rows.append(_row("Total", _faster(given)))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return (
        f'<div class="zoo-scroll" tabindex="0" role="region" aria-label="Answers and costs"><table class="zoo-table">'
        f"<caption>{escape(look.settings.question)}</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(heading: str, cells: Iterable[str]) -> str:
    return f'<tr><th scope="row">{heading}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _answers(given: Sequence[Answer | None]) -> list[str]:
    full, cells = given[0], []
    for answer in given:
        if answer is None:
            cells.append('<span class="zoo-missing">not asked yet</span>')
            continue
        same = "" if answer is full or full is None else _small("same" if answer.text == full.text else "changed")
        cells.append(f"<strong>{escape(answer.text) or '(empty)'}</strong>{same}")
    return cells


def _less(costs: Sequence[Cost], read: Callable[[Cost], float], form: str, less: str) -> list[str]:
    values = [read(cost) for cost in costs]
    return [form.format(value) + _ratio(values[0], value, less, "more") for value in values]


def _seconds(given: Sequence[Answer | None], stage: str) -> list[str]:
    return ["" if answer is None else f"{answer.seconds.get(stage, 0.0) * 1e3:,.1f}" for answer in given]


def _faster(given: Sequence[Answer | None]) -> list[str]:
    totals = [None if answer is None else sum(answer.seconds.values()) * 1e3 for answer in given]
    full = totals[0]
    return [
        "" if total is None else f"{total:,.1f}" + ("" if full is None else _ratio(full, total, "faster", "slower"))
        for total in totals
    ]


def _ratio(before: float, after: float, less: str, more: str) -> str:
    """Say how much less or more it is, if that can be seen."""
    if before == after or not after:
        return ""
    times = f"{max(before, after) / min(before, after):.1f}"
    return "" if times == "1.0" else _small(f"{times}x {less if after < before else more}")


def _small(text: str) -> str:
    return f" <small>{text}</small>"


def _link(look: Look) -> str:
    note = "" if look.settings.example else " (without your pictures)"
    return f'<p class="zoo-link"><a href="?{escape(look.settings.query())}">Link to these settings</a>{note}</p>'
