"""The tables and the JSON of the results of commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from zooprune.cli.requests import Prompt
from zooprune.cli.terminal import say, show, text, warn

if TYPE_CHECKING:
    from zooprune.asking import Answer, Comparison
    from zooprune.catalogue import Entry
    from zooprune.evaluation.gallery import Gallery
    from zooprune.evaluation.report import Table as Figures
    from zooprune.plan import Plan

#: The longest name of a method that a table shows on a line of its own.
_LONGEST = 20
#: How many of the questions that were left out are listed.
_SHOWN = 10

_STAGES = ("encode", "score", "select", "assign", "prefill", "decode")
#: Stages whose time pruning changes.
_FASTER = ("prefill", "decode")


def print_comparison(result: Comparison, question: str, method: str, expected: str | None) -> None:
    """Print the answers, counts and times of an image with all tokens and with the kept ones."""
    from zooprune.evaluation.report import times

    full, pruned = result.full, result.pruned
    table = Table(title=text(question), title_justify="left")
    table.add_column("")
    table.add_column("all tokens", justify="right")
    table.add_column(text(method), justify="right")
    table.add_column("change", justify="right")
    table.add_row(
        "answer", text(full.text), text(pruned.text), "changed" if result.changed else "same", end_section=True
    )
    for name, before, after, form, better, worse in (
        ("visual tokens", full.visual_tokens, pruned.visual_tokens, "{:,}", "fewer", "more"),
        ("prefill GFLOPs", full.prefill_flops / 1e9, pruned.prefill_flops / 1e9, "{:,.2f}", "fewer", "more"),
        ("KV cache MB", full.kv_cache_bytes / 1e6, pruned.kv_cache_bytes / 1e6, "{:,.2f}", "smaller", "larger"),
    ):
        table.add_row(
            name, form.format(before), form.format(after), times(before, after, better, worse),
            end_section=name == "KV cache MB",
        )  # fmt: skip
    for stage in _STAGES:
        before, after = (answer.seconds.get(stage, 0.0) for answer in (full, pruned))
        change = times(before, after) if stage in _FASTER else ""
        table.add_row(
            f"{stage} ms", f"{before * 1e3:,.1f}", f"{after * 1e3:,.1f}", change, end_section=stage == "decode"
        )
    table.add_row("total ms", f"{full.total * 1e3:,.1f}", f"{pruned.total * 1e3:,.1f}", times(full.total, pruned.total))
    show(table)
    if expected is not None:
        say(f"right answer: {expected}")


def print_folder(found: Sequence[tuple[Prompt, Comparison | str]], question: str, method: str) -> None:
    """Print a line per image, and a total."""
    from zooprune.evaluation.report import times

    table = Table(title=text(question), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("image", "all tokens", method, "answer", "tokens", "time"):
        table.add_column(text(heading), justify="right" if heading in ("tokens", "time") else "left", overflow="fold")
    done = [result for _, result in found if not isinstance(result, str)]
    for number, (prompt, result) in enumerate(found, 1):
        name = Path(prompt.names[0]).name
        if isinstance(result, str):
            table.add_row(text(name), "not asked, see below", end_section=number == len(found))
            continue
        full, pruned = result.full, result.pruned
        shown = (
            name, full.text, pruned.text, "changed" if result.changed else "same",
            f"{full.visual_tokens:,} to {pruned.visual_tokens:,}", times(full.total, pruned.total),
        )  # fmt: skip
        table.add_row(*map(text, shown), end_section=number == len(found))
    same = sum(not result.changed for result in done)
    tokens = [sum(getattr(result, kind).visual_tokens for result in done) for kind in ("full", "pruned")]
    seconds = [sum(getattr(result, kind).total for result in done) for kind in ("full", "pruned")]
    table.add_row(
        "total", "", "", f"{same:,} of {len(done):,} same", f"{tokens[0]:,} to {tokens[1]:,}", times(*seconds)
    )
    show(table)
    for _, result in found:
        if isinstance(result, str):
            warn(f"not asked: {result}")


def answers_as_json(
    found: Sequence[tuple[Prompt, Comparison | str]], question: str, used: Plan, model: Any, expected: str | None
) -> dict[str, Any]:
    """Return all that is needed to repeat the answers, and the answers: a list of them for a folder."""
    from zooprune.environment import describe

    def plain(answer: Answer) -> dict[str, Any]:
        fields = {key: value for key, value in vars(answer).items() if key != "images"}
        return fields | {"total": answer.total, "kept": [image.selection.index.tolist() for image in answer.images]}

    def told(prompt: Prompt, result: Comparison | str) -> dict[str, Any]:
        if isinstance(result, str):
            return {"images": prompt.names, "error": result}
        return {
            "images": prompt.names,
            "changed": result.changed,
            "full": plain(result.full),
            "pruned": plain(result.pruned),
            "picture": None if prompt.save is None else str(prompt.save),
        }

    head = {
        "question": question,
        "model": used.model,
        "method": used.method,
        "keep": used.keep,
        "options": used.options,
        "dropped": used.policy.dropped,
        "positions": used.policy.positions,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "versions": describe()["versions"],
        "expected": expected,
    }
    return head | (told(*found[0]) if len(found) == 1 else {"results": [told(*each) for each in found]})


def print_gallery(found: Gallery, question: str, expected: str | None, left_out: dict[str, str]) -> None:
    """Print what every method answers."""
    table = Table(title=text(question), title_justify="left", box=SIMPLE_HEAD)
    for heading in ("method", "kept", "answer", "right" if expected else "as with all tokens"):
        table.add_column(heading, justify="right" if heading == "kept" else "left")
    for panel in found.panels:
        kept = sum(map(len, panel.selections))
        table.add_row(*map(text, (panel.name, kept, panel.answer, "yes" if panel.right else "no")))
    show(table)
    if expected is not None:
        say(f"right answer: {expected}")
    for reason in left_out.values():
        say(f"left out: {reason.partition(';')[0]}", soft_wrap=True)


def gallery_as_json(
    found: Gallery, question: str, expected: str | None, left_out: dict[str, str], save: Path | None
) -> dict[str, Any]:
    """Return what every method keeps and answers."""
    return {
        "question": question,
        "expected": expected,
        "methods": [
            {
                "name": panel.name,
                "group": panel.group,
                "answer": panel.answer,
                "right": panel.right,
                "kept": [selection.index.tolist() for selection in panel.selections],
                "merged": [selection.index[selection.mass > 1].tolist() for selection in panel.selections],
            }
            for panel in found.panels
        ],
        "left_out": left_out,
        "picture": None if save is None else str(save),
    }


def print_methods(entries: Sequence[Entry]) -> None:
    """Print a line per method."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("method", "arXiv", "reads", "count", "merges", "seed", "families"):
        table.add_column(heading, no_wrap=heading != "reads")
    for one in entries:
        count = "either" if " or " in one.count else one.count
        shown = (
            one.name,
            one.arxiv or "",
            ", ".join(one.reads),
            count,
            "yes" if one.merges else "",
            one.seed,
            one.hosts,
        )
        table.add_row(*map(text, shown))
    show(table)
    say(
        "reads     beside the image's tokens: attention and keys of the tower, the question\n"
        "count     exact: the budget is met; native: the image decides; either: an option\n"
        "seed      the choice is drawn; sampled: only where the sensitivity is sampled\n"
        "families  of 'zooprune models', how many can host it\n\n"
        "One method in full: zooprune methods NAME"
    )


def print_method(entry: Entry) -> None:
    """Print the description and the options of a method."""
    for paragraph in (f"{entry.name}: {entry.idea[0]}", *entry.idea[1:], f"Source: {entry.source}"):
        say(paragraph + "\n")
    if entry.formula:
        say(entry.formula + "\n", soft_wrap=True)
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for fact, value in {
        "arXiv": f"https://arxiv.org/abs/{entry.arxiv} ({entry.year})" if entry.arxiv else "",
        "prunes": entry.where,
        "made for": " and ".join(f"{modality}s" for modality in entry.modalities),
        "reads": ", ".join(entry.signals) or "features and embeddings only",
        "question": "the choice depends on it" if entry.query_aware else "the choice does not depend on it",
        "count": entry.count,
        "merges": "yes" if entry.merges else "no",
        "trained": "yes" if entry.trained else "no",
        "seed": {"": "no", "yes": "yes"}.get(entry.seed, f"where the sensitivity is {entry.seed}"),
        "families": "all" if entry.hosts == "all" else f"{entry.hosts}: {'; '.join(entry.families)}",
    }.items():
        if value:
            facts.add_row(fact, text(value))
    show(facts)
    options = Table("option", "default", "meaning", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for option in entry.options:
        options.add_row(*map(text, (option.name, option.default, option.meaning)))
    show(options)


def print_figures(figures: Figures, subject: str) -> None:
    """Print the figures of an evaluation."""
    title = text(f"{subject}: {figures.title}")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    # Figures stay whole; a method with many options takes several lines instead.
    long = max(len(str(row[0])) for row in figures.rows) > _LONGEST
    rows = [(_by_line(row[0]) if long else row[0], *row[1:]) for row in figures.rows]
    for number, heading in enumerate(figures.header):
        width = max(len(line) for row in rows for line in str(row[number]).splitlines() or [""])
        table.add_column(
            text(heading), justify="left" if number == 0 else "right", no_wrap=heading in ("method", "95 %"),
            min_width=width,
        )  # fmt: skip
    for row in rows:
        table.add_row(*map(text, row))
    show(table)
    show(text(figures.note), style="dim")


def _by_line(label: str) -> str:
    """Return a method's name and its options, each in a line of its own."""
    name, _, options = label.partition("(")
    return "\n ".join([name, *options.removesuffix(")").split(", ")] if options else [name])


def warn_of_left_out(left_out: dict[str, str]) -> None:
    """Print which questions were not asked, and why."""
    if not left_out:
        return
    from zooprune.evaluation.report import not_asked

    lines = [not_asked(left_out), *(f"  {name}: {why}" for name, why in list(left_out.items())[:_SHOWN])]
    if len(left_out) > _SHOWN:
        lines.append(f"  and {len(left_out) - _SHOWN:,} more, see report.md")
    for line in lines:
        warn(line)
