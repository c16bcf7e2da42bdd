"""Questions in plain English about a scene, each with a one-word answer.

The kinds are balanced so that somebody who does not see the image can do little better than guess: yes and no
come equally often, counts and colours are even, and names are drawn from all that can be shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from zooprune.bundled.scenes import SIDE, Scene, Thing
from zooprune.bundled.vocabulary import NAMES, PLACES, plural

_T = TypeVar("_T")

#: The kinds of question, in the order the tables show them.
KINDS = ("existence", "place", "relation", "colour", "count", "sign", "digit")


@dataclass(frozen=True)
class Question:
    """A question about one scene."""

    kind: str
    text: str
    answer: str


def ask_about(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """Draw a question of one kind, or None when the scene offers none.

    Parameters
    ----------
    scene : Scene
    kind : str
        One of `KINDS`.
    rng : numpy.random.Generator
    """
    counts = Counter(thing.name for thing in scene.things)
    unique = [thing for thing in scene.things if counts[thing.name] == 1]
    return _ASK[kind](scene, counts, unique, rng)


def _pick(options: Sequence[_T], rng: np.random.Generator) -> _T:
    return options[int(rng.integers(len(options)))]


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _existence(scene: Scene, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    present = bool(rng.random() < 0.5)
    names = [name for name in NAMES if (name in counts) == present]
    if not names:
        return None
    template = _pick(("is there {}?", "can you see {}?"), rng)
    return Question("existence", template.format(_a(_pick(names, rng))), "yes" if present else "no")


def _place(scene: Scene, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    inside: dict[int, list[Thing]] = {}
    near_border = set()
    for thing in scene.things:
        column, row = ((value + start) / SIDE * 3 for value, start in zip(thing.centre, scene.origin, strict=True))
        cell = int(row) * 3 + int(column)
        inside.setdefault(cell, []).append(thing)
        # A thing almost on a border could be said to lie on either side of it.
        slack = 8 * 3 / SIDE
        for dx in (-slack, slack):
            for dy in (-slack, slack):
                other = int(min(max(row + dy, 0), 2.99)) * 3 + int(min(max(column + dx, 0), 2.99))
                if other != cell:
                    near_border |= {cell, other}
    cells = [cell for cell, things in inside.items() if len(things) == 1 and cell not in near_border]
    if not cells:
        return None
    cell = _pick(sorted(cells), rng)

    return Question("place", f"what is in the {PLACES[cell]}?", inside[cell][0].name)


def _relation(scene: Scene, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    if len(unique) < 2:
        return None
    one, other = (unique[i] for i in rng.permutation(len(unique))[:2])
    axis = int(rng.integers(2))
    distance = one.centre[axis] - other.centre[axis]
    if abs(distance) < 24:
        return None
    before = bool(rng.random() < 0.5)
    words = (("right of", "left of"), ("below", "above"))[axis]
    holds = (distance < 0) == before
    return Question("relation", f"is the {one.name} {words[before]} the {other.name}?", "yes" if holds else "no")


def _colour(scene: Scene, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    coloured = [thing for thing in unique if thing.colour]
    if not coloured:
        return None
    thing = _pick(coloured, rng)
    return Question("colour", f"what colour is the {thing.name}?", str(thing.colour))


def _count(scene: Scene, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    countable = [name for name in counts if name not in ("sign", "digit") and counts[name] <= 4]
    if not countable:
        return None
    # Scenes hold one to four copies of one thing, evenly; asking for that thing keeps the answers even.
    number = max(counts[name] for name in countable)
    name = _pick(sorted(name for name in countable if counts[name] == number), rng)
    return Question("count", f"how many {plural(name)} are there?", str(number))


def _sign(scene: Scene, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    return _reading(unique, "sign", "what does the sign say?")


def _digit(scene: Scene, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    return _reading(unique, "digit", "what digit is written?")


def _reading(unique: list[Thing], name: str, text: str) -> Question | None:
    for thing in unique:
        if thing.name == name:
            return Question(name, text, str(thing.text))
    return None


_ASK = dict(zip(KINDS, (_existence, _place, _relation, _colour, _count, _sign, _digit), strict=True))
