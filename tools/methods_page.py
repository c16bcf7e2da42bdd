"""Write docs/methods.md from the registry and from the newest figures: make methods-page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from zooprune.catalogue import Entry, catalogue

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
KEEP = 64
#: Heading, and what becomes of dropped tokens.
POLICIES = (("discarding", "discard"), ("standing in", "stand in"))

HEAD = """\
# Methods

`make methods-page` writes this page from the registry; do not edit it. `zooprune methods` prints the table, and
`zooprune methods NAME` one method.

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


def page() -> str:
    """Return the page."""
    entries, (source, figures) = catalogue(), measured()
    accuracy = (
        f"| {', '.join(heading for heading, _ in POLICIES)} | accuracy on the bundled benchmark with {KEEP} tokens, "
        f"in percent, from `{source.relative_to(ROOT)}`: dropped tokens discarded, or kept tokens "
        "[standing in](standing-in.md) for them; [intervals and other budgets](findings.md#every-method) |"
    )
    lines = [HEAD.format(keep=KEEP, measured=accuracy), *table(entries, figures)]
    for entry in entries:
        lines += ["", f"## {entry.name}", "", *section(entry)]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def measured() -> tuple[Path, dict[tuple[str, str], float]]:
    """Return the newest file of figures, and accuracy in percent by method and by what becomes of dropped tokens."""
    folder = ROOT / "benchmarks" / "results"
    source = max(folder.glob("methods-*.json"))
    rows: list[dict[str, Any]] = json.loads(source.read_text())["rows"]
    figures = {}
    for _, dropped in POLICIES:
        asked = [row for row in rows if (row["dropped"], row["keep"]) == (dropped, KEEP)]
        for method in {row["method"] for row in asked}:
            # Methods that draw have a row per seed.
            values = [100 * row["accuracy"]["all"] for row in asked if row["method"] == method]
            figures[method, dropped] = mean(values)
    return source, figures


def table(entries: tuple[Entry, ...], figures: dict[tuple[str, str], float]) -> Iterator[str]:
    """Yield the lines of the table."""
    headings = ["method", "paper", "year", "where", "reads", "question", "count", "merges", "seed", "families"]
    yield f"| {' | '.join([*headings, *(heading for heading, _ in POLICIES)])} |"
    yield "|" + "---|" * len(headings) + "---:|" * len(POLICIES)
    for one in entries:
        cells = [
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
        values = [figures.get((one.name, dropped)) for _, dropped in POLICIES]
        yield f"| {' | '.join([*cells, *('' if value is None else f'{value:.1f}' for value in values)])} |"


def section(entry: Entry) -> Iterator[str]:
    """Yield the lines about one method; a paragraph is one line, since a line may begin with what makes a list."""
    for paragraph in (*entry.idea, f"Source: {entry.source}"):
        yield from (as_it_is(paragraph), "")
    for option in entry.options:
        yield f"- `{option.name}` ({as_it_is(option.kind)}; default {option.default}): {as_it_is(option.meaning)}"


def as_it_is(text: str) -> str:
    """Return Markdown that shows a text of a docstring as it is; code in backticks stays code."""
    pieces = text.split("`")
    # Every other piece stands between backticks.
    pieces[::2] = [piece.replace("*", r"\*").replace("<", "&lt;") for piece in pieces[::2]]
    return "`".join(pieces)


if __name__ == "__main__":
    main()
