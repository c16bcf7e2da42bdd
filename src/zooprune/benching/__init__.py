"""What pruning costs and saves on this machine: one module per question, each with a function `rows`."""

from __future__ import annotations

from typing import Any

#: The questions, and what their figures are measured against.
QUESTIONS = {
    "sensitivity": "scoring the tokens of an image",
    "selection": "picking among scored tokens",
    "end-to-end": "requests beside one whose tokens were chosen at no cost",
    "memory": "cache and peak of a request",
}


def measure(question: str, shape: str, *, repeats: int, device: str) -> list[dict[str, Any]]:
    """Measure one question at one shape; the rows are described where they are made.

    Parameters
    ----------
    question : str
        A key of `QUESTIONS`.
    shape : str
        A name of `zooprune.benching.shapes.SHAPES`.
    repeats : int
    device : str
    """
    from zooprune.benching import end_to_end, memory, selection, sensitivity
    from zooprune.benching.shapes import shape_of
    from zooprune.tokens import Budget

    if question == "sensitivity":
        return sensitivity.rows(shape, repeats=repeats, device=device)
    if question == "memory":
        return memory.rows(shape, device=device)
    if question == "end-to-end":
        return end_to_end.rows(shape, repeats=repeats, device=device)
    known, rows = shape_of(shape), []
    for budget in known.budgets:
        keep, width = Budget(budget).count(known.tokens), known.text["hidden_size"]
        rows += selection.rows(known.tokens, keep, width=width, repeats=repeats, device=device)
    return rows
