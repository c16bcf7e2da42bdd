"""The pictures that a question is about: a visitor's own files, or scenes of the bundled benchmark."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from zooprune.bundled.benchmark import KINDS, load_benchmark, scene_image
from zooprune.data.images import decode_image

#: How many pictures a question can be about, and how large a file may be.
MAX_PICTURES, MAX_MEGABYTES = 8, 20


@dataclass(frozen=True)
class Picture:
    """A picture as a file.

    Parameters
    ----------
    name : str
        What the visitor calls it.
    data : bytes
        The whole file.
    """

    name: str
    data: bytes

    @property
    def sha256(self) -> str:
        """What tells this file from all others."""
        return hashlib.sha256(self.data).hexdigest()

    def image(self) -> Image.Image:
        """Return it as RGB.

        Raises
        ------
        ValueError
            If it cannot be read or has too many pixels; see `zooprune.data.images.load_image`.
        """
        return decode_image(self.data, self.name)


@dataclass(frozen=True)
class Example:
    """A question of the bundled benchmark.

    Parameters
    ----------
    id : str
    task : str
        Kind of question, one of `zooprune.bundled.benchmark.KINDS`.
    question, answer : str
    pictures : tuple of Picture
    """

    id: str
    task: str
    question: str
    answer: str
    pictures: tuple[Picture, ...]


def too_large(name: str) -> str:
    """Return what a visitor is told of a file that is too large."""
    return f"{name} is larger than {MAX_MEGABYTES} MB; scale it down first"


def read_pictures(paths: Sequence[str | Path]) -> tuple[Picture, ...]:
    """Read uploaded files, without decoding them.

    Raises
    ------
    ValueError
        If there are too many files, or one is too large or is gone.
    """
    if len(paths) > MAX_PICTURES:
        raise ValueError(f"{len(paths)} pictures are too many; choose at most {MAX_PICTURES}")
    found = []
    for path in map(Path, paths):
        try:
            size = path.stat().st_size
            if size > MAX_MEGABYTES * 1_000_000:
                raise ValueError(too_large(path.name))
            found.append(Picture(path.name, path.read_bytes()))
        except OSError:
            # Uploads are deleted after an hour.
            raise ValueError(f"{path.name} is no longer on the server; upload it again") from None
    return tuple(found)


@cache
def example_ids() -> tuple[str, ...]:
    """Return the examples that the page offers: the first question of every task."""
    items = load_benchmark()
    return tuple(next(item.id for item in items if item.task == task) for task in KINDS)


@cache
def load_example(id: str) -> Example:
    """Return one of `example_ids`.

    Raises
    ------
    ValueError
        If there is no such example.
    """
    if id not in example_ids():
        raise ValueError(f"there is no example {id!r}; choose one of {', '.join(example_ids())}")
    item = next(item for item in load_benchmark() if item.id == id)
    pictures = tuple(Picture(f"scene-{number}.png", _png(scene_image(number))) for number in item.scenes)
    return Example(item.id, item.task, item.question, item.answer, pictures)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
