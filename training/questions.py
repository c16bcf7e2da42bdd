"""Questions in plain English about one scene or two, each with a one-word answer and where it can be seen.

The kinds are balanced so that somebody who does not see the image can do little better than guess: yes and no
come equally often, counts and colours are even, and names are drawn from all that can be shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vocabulary import NAMES, ORDINALS, PLACES, plural
from zooprune.bundled.benchmark import KINDS
from zooprune.bundled.layout import SIDE, Box, Layout, Thing

_T = TypeVar("_T")

#: The kinds of question about one scene.
SINGLE_KINDS = KINDS[:-1]


@dataclass(frozen=True)
class Question:
    """A question with its answer.

    `evidence` are the places that have to be seen to know the answer, each as the number of the image and a box in
    pixels. It is empty where nothing in particular has to be: where the answer is that something is not
    there, or where each of several copies would do.
    """

    kind: str
    text: str
    answer: str
    evidence: tuple[tuple[int, Box], ...] = ()


def ask_about(layout: Layout, kind: str, rng: np.random.Generator) -> Question | None:
    """Draw a question about one scene, or None when it offers none of this kind.

    Parameters
    ----------
    layout : Layout
    kind : str
        One of `SINGLE_KINDS`.
    rng : numpy.random.Generator
    """
    counts = Counter(thing.name for thing in layout.things)
    unique = [thing for thing in layout.things if counts[thing.name] == 1]
    return _ASK[kind](layout, counts, unique, rng)


def ask_about_pair(layouts: tuple[Layout, Layout], rng: np.random.Generator) -> Question | None:
    """Draw a question about two scenes, or None when they offer none: which shows a thing, do both, and what in one."""
    draw = rng.random()
    ask = _which if draw < 0.5 else _both if draw < 0.75 else _digit_of_one
    return ask(layouts, rng) or _which(layouts, rng)


def _pick(options: Sequence[_T], rng: np.random.Generator) -> _T:
    return options[int(rng.integers(len(options)))]


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _seen(*things: Thing, image: int = 0) -> tuple[tuple[int, Box], ...]:
    return tuple((image, thing.box) for thing in things)


def _existence(layout: Layout, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    present = bool(rng.random() < 0.5)
    names = [name for name in NAMES if (name in counts) == present]
    if not names:
        return None
    template, name = _pick(("is there {}?", "can you see {}?"), rng), _pick(names, rng)
    evidence = _seen(*(thing for thing in unique if thing.name == name))
    return Question("existence", template.format(_a(name)), "yes" if present else "no", evidence)


def _place(layout: Layout, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    inside: dict[int, list[Thing]] = {}
    near_border = set()
    for thing in layout.things:
        column, row = ((value + start) / SIDE * 3 for value, start in zip(thing.centre, layout.origin, strict=True))
        cell = int(row) * 3 + int(column)
        inside.setdefault(cell, []).append(thing)
        # A thing almost on a border could be said to lie on either side of it.
        slack = 8 * 3 / SIDE
        for dx in (-slack, slack):
            for dy in (-slack, slack):
                other = int(min(max(row + dy, 0), 2.99)) * 3 + int(min(max(column + dx, 0), 2.99))
                if other != cell:
                    near_border |= {cell, other}
    cells = [
        cell
        for cell, things in inside.items()
        if len(things) == 1 and things[0].name != "label" and cell not in near_border
    ]
    if not cells:
        return None
    cell = _pick(sorted(cells), rng)
    (thing,) = inside[cell]
    return Question("place", f"what is in the {PLACES[cell]}?", thing.name, _seen(thing))


def _relation(layout: Layout, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    named = [thing for thing in unique if thing.name != "label"]
    if len(named) < 2:
        return None
    one, other = (named[i] for i in rng.permutation(len(named))[:2])
    axis = int(rng.integers(2))
    distance = one.centre[axis] - other.centre[axis]
    if abs(distance) < 24:
        return None
    before = bool(rng.random() < 0.5)
    words = (("right of", "left of"), ("below", "above"))[axis]
    answer = "yes" if (distance < 0) == before else "no"
    return Question("relation", f"is the {one.name} {words[before]} the {other.name}?", answer, _seen(one, other))


def _colour(layout: Layout, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    coloured = [thing for thing in unique if thing.colour]
    if not coloured:
        return None
    thing = _pick(coloured, rng)
    return Question("colour", f"what colour is the {thing.name}?", str(thing.colour), _seen(thing))


def _count(layout: Layout, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    countable = [name for name in counts if name not in ("sign", "digit", "label") and counts[name] <= 4]
    if not countable:
        return None
    if sum(counts[name] > 1 for name in countable) < 2:
        # Most scenes hold one to four copies of one thing, evenly; asking for that thing keeps the answers even.
        most = max(counts[name] for name in countable)
        countable = [name for name in countable if counts[name] == most]
    name = _pick(sorted(countable), rng)
    evidence = _seen(*(thing for thing in layout.things if thing.name == name))
    return Question("count", f"how many {plural(name)} are there?", str(counts[name]), evidence)


def _sign(layout: Layout, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    return _reading("sign", unique, "sign", "what does the sign say?")


def _digit(layout: Layout, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    return _reading("digit", unique, "digit", "what digit is written?")


def _print(layout: Layout, counts: Counter[str], unique: list[Thing], rng: np.random.Generator) -> Question | None:
    return _reading("print", unique, "label", "what does the label say?")


def _reading(kind: str, unique: list[Thing], name: str, text: str) -> Question | None:
    for thing in unique:
        if thing.name == name:
            # Every character is needed.
            boxes = thing.glyphs or (thing.box,)
            return Question(kind, text, str(thing.text), tuple((0, box) for box in boxes))
    return None


_ASK = dict(zip(SINGLE_KINDS, (_existence, _place, _relation, _colour, _count, _sign, _digit, _print), strict=True))


def _names(layouts: tuple[Layout, Layout]) -> tuple[Counter[str], Counter[str]]:
    first, second = (Counter(thing.name for thing in layout.things if thing.name in NAMES) for layout in layouts)
    return first, second


def _which(layouts: tuple[Layout, Layout], rng: np.random.Generator) -> Question | None:
    names = _names(layouts)
    image = int(rng.integers(2))
    only = [name for name in NAMES if names[image][name] == 1 and not names[1 - image][name]]
    if not only:
        return None
    name = _pick(only, rng)
    evidence = _seen(*(thing for thing in layouts[image].things if thing.name == name), image=image)
    return Question("pair", f"which image shows {_a(name)}?", ORDINALS[image], evidence)


def _both(layouts: tuple[Layout, Layout], rng: np.random.Generator) -> Question | None:
    names = _names(layouts)
    shared = bool(rng.random() < 0.5)
    # Something is in one image at least, so that a look at one of them does not settle it.
    fitting = [name for name in NAMES if sorted((names[0][name], names[1][name])) == ([1, 1] if shared else [0, 1])]
    if not fitting:
        return None
    name = _pick(fitting, rng)
    evidence = tuple(
        (image, thing.box) for image, layout in enumerate(layouts) for thing in layout.things if thing.name == name
    )
    return Question("pair", f"is there {_a(name)} in both images?", "yes" if shared else "no", evidence)


def _digit_of_one(layouts: tuple[Layout, Layout], rng: np.random.Generator) -> Question | None:
    if any(names["digit"] != 1 for names in _names(layouts)):
        return None
    image = int(rng.integers(2))
    (digit,) = (thing for thing in layouts[image].things if thing.name == "digit")
    return Question(
        "pair", f"what digit is in the {ORDINALS[image]} image?", str(digit.text), _seen(digit, image=image)
    )
