"""The held-out questions that come with the package, and what has to be seen to answer each.

Scenes are stored as layouts and rendered when asked for, the same pixels everywhere. Nothing but the package is needed.
Before Pillow 13, 4 to 30 pixels in each of 48 of the 660 scenes differ, by up to 12 of 255.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from zooprune.bundled.layout import Box, Layout
from zooprune.bundled.scenes import render

#: The tasks, which are kinds of question, in the order the tables show them; the last is about two scenes.
KINDS = ("existence", "place", "relation", "colour", "count", "sign", "digit", "print", "pair")
PATH = Path(__file__).parent / "assets" / "benchmark.json.gz"


@dataclass(frozen=True)
class Item:
    """One question about one scene or two.

    Parameters
    ----------
    id : str
        Task and number, such as "sign-17".
    task : str
        One of `KINDS`.
    scenes : tuple of int
        Numbers of the scenes it shows, in order.
    question, answer : str
    evidence : tuple of (int, box)
        What has to be seen to know the answer: the number of the image in the prompt, and left, top, right and
        bottom in pixels. Empty where nothing in particular has to be.
    """

    id: str
    task: str
    scenes: tuple[int, ...]
    question: str
    answer: str
    evidence: tuple[tuple[int, Box], ...]


def load_benchmark() -> tuple[Item, ...]:
    """Return all questions, the tasks in turn, so that the first few hundred are a fair sample."""
    return tuple(
        Item(
            item["id"],
            item["task"],
            tuple(item["scenes"]),
            item["question"],
            item["answer"],
            tuple((image, tuple(box)) for image, box in item["evidence"]),
        )
        for item in _stored()["questions"]
    )


def scene_image(number: int) -> Image.Image:
    """Render scene `number`: RGB, 336 x 336."""
    return render(scene_layout(number))


def scene_layout(number: int) -> Layout:
    """Return what scene `number` consists of."""
    return Layout.from_json(_stored()["scenes"][number])


def checksum(image: Image.Image) -> str:
    """Return what tells an image's pixels from all others."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


def checksums() -> list[str]:
    """Return the `checksum` that every scene has to have, in order."""
    return _stored()["checksums"]


@cache
def _stored() -> dict:
    return json.loads(gzip.decompress(PATH.read_bytes()))
