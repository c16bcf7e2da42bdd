"""The questions that pruning loses, and pictures of what was kept of their images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from zooprune.data.examples import Example
from zooprune.evaluation.metrics import normalise
from zooprune.evaluation.runner import Row, Setting, Subject, setting_key
from zooprune.picture import draw_kept
from zooprune.prompting import seen_images
from zooprune.pruners import UNPRUNED
from zooprune.reports import ImageReport

#: The number of cases per method.
PER_METHOD = 3


@dataclass(frozen=True)
class Case:
    """A question that pruning lost: its reply before and after."""

    example: Example
    setting: Setting
    before: str
    after: str

    @property
    def told(self) -> dict[str, Any]:
        """The case as reports show it."""
        return {
            "method": self.setting.label,
            "keep": self.setting.keep,
            "seed": self.setting.seed,
            "id": self.example.id,
            "task": self.example.task,
            "question": self.example.question,
            "answers": list(self.example.answers),
            "unpruned": self.before,
            "pruned": self.after,
        }


def worst_cases(rows: Iterable[Row], examples: Sequence[Example], settings: Sequence[Setting]) -> list[Case]:
    """Return the worst cases of each method: those it loses even with its largest budgets.

    If the answer is not known, a question counts as lost when the reply changes.

    Parameters
    ----------
    rows : iterable of dict
        The rows of one model.
    examples : sequence of Example
    settings : sequence of Setting
        The settings of the rows.
    """
    by_id = {example.id: example for example in examples}
    replies = {(*setting_key(row), row["id"]): row for row in rows}
    full = {row["id"]: row for key, row in replies.items() if key[0] == UNPRUNED}
    cases: list[Case] = []
    for method in dict.fromkeys(setting.label for setting in settings if setting.method != UNPRUNED):
        # Budgets can be shares or numbers, so the number of kept tokens is compared.
        lost = [
            (replies[(*setting.key, question)]["kept_tokens"], setting, question)
            for setting in settings
            for question in full
            if setting.label == method
            and (*setting.key, question) in replies
            and _is_lost(full[question], replies[(*setting.key, question)])
        ]
        taken: set[str] = set()
        for _, setting, question in sorted(lost, key=lambda found: -found[0]):
            if question not in taken and len(taken) < PER_METHOD:
                taken.add(question)
                after = replies[(*setting.key, question)]["reply"]
                cases.append(Case(by_id[question], setting, full[question]["reply"], after))
    return cases


def _is_lost(before: Row, after: Row) -> bool:
    if before["right"] is None:
        return normalise(before["reply"]) != normalise(after["reply"])
    return bool(before["right"] and not after["right"])


def draw_case(subject: Subject, case: Case) -> list[Image.Image]:
    """Return one picture for each image of the question.

    Raises
    ------
    CannotDrawError
        If it is not known where on the image the tokens lie.
    """
    inputs = subject.prepare([case.example])
    report = subject.generate(inputs, case.setting).report
    images = [load() for load in case.example.images]
    groups: list[Sequence[ImageReport]] = [report.images]
    if len(report.images) == len(images):
        groups = [[image] for image in report.images]
    caption = (
        f"{case.example.question}\nall tokens: {case.before}\n"
        f"{case.setting.label}, keep {case.setting.keep}: {case.after}"
    )
    seen = seen_images(subject.processor, inputs, images)
    label = case.setting.pruner().scores_label
    return [draw_kept(image, group, caption, scores_label=label) for image, group in zip(seen, groups, strict=False)]
