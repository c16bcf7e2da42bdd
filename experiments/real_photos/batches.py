"""What a training step reads: scenes, and questions drawn about them. A step's number says all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asking import TASKS, Asker, Question
from kinds import Split, new_kinds
from mosaics import STREAMS, Mosaic, draw_mosaic

#: The order in which tasks are asked about one scene, again and again. Those that few scenes bear come first, and those
#: that are learnt late come twice.
SINGLE = ("count", "odd", "small", "relation", "where", "what", "count", "relation", "where", "existence")


@dataclass(frozen=True)
class Batch:
    """The numbers of the scenes of each sequence, and the questions about them."""

    scenes: tuple[tuple[int, ...], ...]
    questions: tuple[tuple[Question, ...], ...]


class Examples:
    """Draws batches.

    Parameters
    ----------
    photographs : mapping
        Those of the split, by kind.
    split : {"train", "test"}
        In training some kinds are not asked about in some tasks.
    """

    def __init__(self, photographs: Mapping[str, Sequence[Path]], split: Split) -> None:
        self.photographs, self.split = photographs, split
        kinds = list(photographs)
        self.asker = Asker(kinds, lambda task: new_kinds(kinds, task) if split == "train" else ())

    def mosaic(self, number: int, side: int) -> Mosaic:
        """Return a scene of the split."""
        return draw_mosaic(number, self.photographs, self.split, side)

    def batch(self, first: int, count: int, images: int, questions: int, side: int) -> Batch:
        """Return `count` sequences about scenes from `first` on, with up to `questions` about each."""
        scenes = tuple(tuple(range(number, number + images)) for number in range(first, first + count * images, images))
        return Batch(scenes, tuple(self._asked(numbers, questions, side) for numbers in scenes))

    def _asked(self, numbers: tuple[int, ...], count: int, side: int) -> tuple[Question, ...]:
        mosaics = [self.mosaic(number, side) for number in numbers]
        rng = np.random.default_rng([STREAMS[self.split], side, *numbers, 1])
        tasks = ("pair",) if len(numbers) > 1 else SINGLE
        described = self.asker.describe(mosaics[0]) if self.split == "train" and tasks == SINGLE else None
        found: list[Question] = [] if described is None else [described]
        for turn in range(2 * count):
            question = self.asker.ask(tasks[turn % len(tasks)], mosaics, rng)
            if question is not None and all(question.text != other.text for other in found):
                found.append(question)
        return tuple(found[:count])


def tasks_of(batch: Batch) -> list[int]:
    """Return the number of the task of each question, in order."""
    return [TASKS.index(question.task) for asked in batch.questions for question in asked]
