"""What a visitor takes home: a picture, and all that is needed to repeat a result."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from PIL import Image

import zooprune
from zooprune.app.fragments import Answers
from zooprune.app.workbench import Choice, Look
from zooprune.asking import Answer
from zooprune.picture import CannotDrawError, draw_kept
from zooprune.plan import VERSION, Plan
from zooprune.pruners import pruner_class


def as_json(look: Look, answers: Answers, facts: Mapping[str, str], max_new_tokens: int) -> str:
    """Return the settings, the pictures and what came of them.

    Parameters
    ----------
    look : Look
    answers : mapping of str to Answer
        By `zooprune.app.workbench.Look.key`.
    facts : mapping of str to str
        Of the model; see `zooprune.app.workbench.Workbench.facts`.
    max_new_tokens : int
    """
    record = {
        "versions": {"zooprune": zooprune.__version__, **{name: version(name) for name in ("torch", "transformers")}},
        "model": dict(facts),
        "question": look.settings.question,
        "max_new_tokens": max_new_tokens,
        "example": look.settings.example or None,
        "pictures": [
            {
                "name": picture.name,
                "sha256": picture.sha256,
                "base64": base64.b64encode(picture.data).decode(),
            }
            for picture in look.pictures
        ],
        "all_tokens": vars(look.full) | _answered(answers.get(look.key(None))),
        "methods": [
            {
                # Written to a file of its own, it is a plan that `zooprune ask --plan` takes.
                "plan": {"version": VERSION} | choice.plan.as_json(),
                "kept": [image.selection.index.tolist() for image in choice.images],
                **vars(choice.cost),
                **_answered(answers.get(look.key(choice.plan))),
            }
            for choice in look.choices
        ],
    }
    return json.dumps(record, indent=1) + "\n"


def as_png(look: Look, answers: Answers) -> bytes:
    """Return one picture of all that is kept, with question and answers.

    Raises
    ------
    ValueError
        If the model reads pictures as several tiles, and it is not known where they lie.
    """
    pages = []
    for choice in look.choices:
        if len(choice.images) != len(look.seen):
            raise ValueError(_CANNOT_DRAW)
        label, caption = pruner_class(choice.plan.method).scores_label, _caption(look, choice, answers)
        try:
            pages += [
                draw_kept(seen, [report], caption, scores_label=label, size=size)
                for seen, size, report in zip(look.seen, look.sizes, choice.images, strict=True)
            ]
        except CannotDrawError:
            raise ValueError(_CANNOT_DRAW) from None
    whole = Image.new("RGB", (max(page.width for page in pages), sum(page.height for page in pages)), "white")
    top = 0
    for page in pages:
        whole.paste(page, (0, top))
        top += page.height
    file = io.BytesIO()
    whole.save(file, "PNG")
    return file.getvalue()


_CANNOT_DRAW = "this model reads a picture as several tiles, which cannot be drawn; download the JSON instead"


def _answered(answer: Answer | None) -> dict[str, Any]:
    return {} if answer is None else {"answer": answer.text, "seconds": answer.seconds}


def _caption(look: Look, choice: Choice, answers: Answers) -> str:
    def line(name: str, tokens: int, plan: Plan | None) -> str:
        answer = answers.get(look.key(plan))
        return f"{name}, {tokens} tokens" + ("" if answer is None else f": {answer.text}")

    return "\n".join(
        (
            look.settings.question,
            line("all", look.full.visual_tokens, None),
            line(choice.plan.method, choice.cost.visual_tokens, choice.plan),
        )
    )
