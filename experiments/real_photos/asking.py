"""Questions about scenes, their answers, and what has to be seen to know them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from mosaics import MOST_ALIKE, Box, Mosaic, Tile

Evidence = tuple[tuple[int, Box], ...]

#: Names that are plural, and so take no article.
PLURAL = frozenset({"binoculars", "headphones"})
NUMBERS = ("one", "two", "three", "four")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
#: A photograph whose middle is closer to a border between regions is not asked about, as a share of the side.
MARGIN = 0.03
#: How far apart the middles of two photographs must be to be called left or right of each other.
APART = 0.15
#: For each relation the axis (0 across, 1 down) and the sign of the first place less the second.
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


@dataclass(frozen=True)
class Question:
    """A question about one scene or two.

    Parameters
    ----------
    task : str
        One of `TASKS`.
    text, answer : str
    kinds : tuple of str
        The kinds that it is about; where the answer is a kind, that one.
    evidence : tuple of (int, box)
        What has to be seen: the number of the image in the prompt, and left, top, right and bottom in pixels.
    """

    task: str
    text: str
    answer: str
    kinds: tuple[str, ...]
    evidence: Evidence = ()


def phrase(kind: str) -> str:
    """Return a kind with its article."""
    if kind in PLURAL:
        return kind
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def ninth(tile: Tile, side: int) -> tuple[str, bool]:
    """Return in which ninth of the image the middle of a photograph lies, and whether that is clear."""
    shares = [value / side for value in tile.centre[::-1]]
    words = [names[int(share * 3)] for share, names in zip(shares, (ROWS, COLUMNS), strict=True)]
    clear = min(abs(share - border) for share in shares for border in (1 / 3, 2 / 3)) >= MARGIN
    return " ".join(words), clear


def _boxes(tiles: Sequence[Tile], image: int = 0) -> Evidence:
    return tuple((image, tile.box) for tile in tiles)


def _single(mosaic: Mosaic) -> list[Tile]:
    """Return the photographs of kinds that are there once."""
    counts = Counter(tile.kind for tile in mosaic.tiles)
    return [tile for tile in mosaic.tiles if counts[tile.kind] == 1]


def _alone(mosaic: Mosaic) -> dict[str, Tile]:
    """Return the photographs that clearly lie alone in a ninth of the image."""
    regions: dict[str, list[tuple[Tile, bool]]] = {}
    for tile in mosaic.tiles:
        place, clear = ninth(tile, mosaic.side)
        regions.setdefault(place, []).append((tile, clear))
    return {place: found[0][0] for place, found in regions.items() if len(found) == 1 and found[0][1]}


class Asker:
    """Draws questions.

    Parameters
    ----------
    kinds : sequence of str
        All kinds there are.
    barred : callable
        Which kinds are not asked about in a task.
    """

    def __init__(self, kinds: Sequence[str], barred: Callable[[str], Collection[str]]) -> None:
        self.kinds = tuple(kinds)
        self.barred = {task: frozenset(barred(task)) for task in TASKS}

    def ask(self, task: str, scenes: Sequence[Mosaic], rng: np.random.Generator) -> Question | None:
        """Return a question of a task about one scene, or about two for "pair"; None if these scenes bear none."""
        return self._pair(scenes, rng) if task == "pair" else _ASK[task](self, scenes[0], rng)

    def describe(self, mosaic: Mosaic) -> Question | None:
        """Return the question for all that is seen where; None if no place holds a single photograph.

        It is asked in training alone. As captions do in LLaVA's first stage, it says much about a scene at once.
        """
        open_ = self._open("where", self._open("what", mosaic.tiles))
        alone = {place: tile for place, tile in _alone(mosaic).items() if tile in open_}
        if not alone:
            return None
        told = ", ".join(f"{place}: {alone[place].kind}" for place in PLACES if place in alone)
        kinds = tuple(tile.kind for tile in alone.values())
        return Question("describe", "What do you see where?", told, kinds, _boxes(list(alone.values())))

    def _open(self, task: str, tiles: Sequence[Tile]) -> list[Tile]:
        return [tile for tile in tiles if tile.kind not in self.barred[task]]

    def _existence(self, mosaic: Mosaic, rng: np.random.Generator) -> Question | None:
        there = {tile.kind for tile in mosaic.tiles}
        present = rng.random() < 0.5
        choices = [kind for kind in self.kinds if (kind in there) == present and kind not in self.barred["existence"]]
        if not choices:
            return None
        kind = _pick(rng, choices)
        shown = [tile for tile in mosaic.tiles if tile.kind == kind]
        return Question("existence", f"Do you see {phrase(kind)}?", "yes" if present else "no", (kind,), _boxes(shown))

    def _where(self, mosaic: Mosaic, rng: np.random.Generator) -> Question | None:
        regions: dict[str, list[Tile]] = {}
        for tile in self._open("where", _single(mosaic)):
            place, clear = ninth(tile, mosaic.side)
            if clear:
                regions.setdefault(place, []).append(tile)
        if not regions:
            return None
        # First the region, so that all answers are about as frequent as scenes allow.
        place = _pick(rng, sorted(regions))
        tile = _pick(rng, regions[place])
        return Question("where", f"Where do you see {phrase(tile.kind)}?", place, (tile.kind,), _boxes([tile]))

    def _what(self, mosaic: Mosaic, rng: np.random.Generator) -> Question | None:
        alone = {place: tile for place, tile in _alone(mosaic).items() if self._open("what", [tile])}
        if not alone:
            return None
        place = _pick(rng, sorted(alone))
        tile = alone[place]
        return Question("what", f"What do you see at the {place}?", tile.kind, (tile.kind,), _boxes([tile]))

    def _relation(self, mosaic: Mosaic, rng: np.random.Generator) -> Question | None:
        tiles = self._open("relation", _single(mosaic))
        relation = _pick(rng, list(RELATIONS))
        axis, sign = RELATIONS[relation]
        pairs = [
            (one, other)
            for one in tiles
            for other in tiles
            if (one.centre[axis] - other.centre[axis]) * sign >= APART * mosaic.side
        ]
        if not pairs:
            return None
        one, other = _pick(rng, pairs)
        holds = rng.random() < 0.5
        first, second = (one, other) if holds else (other, one)
        text = f"Do you see {phrase(first.kind)} {relation} {phrase(second.kind)}?"
        answer = "yes" if holds else "no"
        return Question("relation", text, answer, (first.kind, second.kind), _boxes([first, second]))

    def _count(self, mosaic: Mosaic, rng: np.random.Generator) -> Question | None:
        counts = Counter(tile.kind for tile in self._open("count", mosaic.tiles))
        possible = sorted({number for number in counts.values() if number <= MOST_ALIKE})
        # Where all are there once there is nothing to count.
        if mosaic.sort != "counts" or not possible:
            return None
        number = _pick(rng, possible)
        kind = _pick(rng, [kind for kind, times in counts.items() if times == number])
        shown = [tile for tile in mosaic.tiles if tile.kind == kind]
        text = f"How many times do you see {phrase(kind)}?"
        return Question("count", text, NUMBERS[number - 1], (kind,), _boxes(shown))

    def _odd(self, mosaic: Mosaic, rng: np.random.Generator) -> Question | None:
        tiles = self._open("odd", _single(mosaic))
        if mosaic.sort != "odd" or not tiles:
            return None
        # Others have to be seen to know that it is the odd one; any of them will do.
        return Question("odd", "What is the odd one out?", tiles[0].kind, (tiles[0].kind,), _boxes(tiles[:1]))

    def _small(self, mosaic: Mosaic, rng: np.random.Generator) -> Question | None:
        smallest = min(mosaic.tiles, key=lambda tile: tile.area)
        if mosaic.sort != "small" or not self._open("small", [smallest]):
            return None
        text = "What do you see in the small photograph?"
        return Question("small", text, smallest.kind, (smallest.kind,), _boxes([smallest]))

    def _pair(self, scenes: Sequence[Mosaic], rng: np.random.Generator) -> Question | None:
        first, second = ({tile.kind for tile in mosaic.tiles} for mosaic in scenes)
        answers = {
            "first": first - second,
            "second": second - first,
            "both": first & second,
            "neither": set(self.kinds) - first - second,
        }
        open_ = {answer: sorted(kinds - self.barred["pair"]) for answer, kinds in answers.items()}
        answer = _pick(rng, [answer for answer, kinds in open_.items() if kinds])
        kind = _pick(rng, open_[answer])
        shown = tuple(
            (image, tile.box) for image, mosaic in enumerate(scenes) for tile in mosaic.tiles if tile.kind == kind
        )
        return Question("pair", f"In which image do you see {phrase(kind)}?", answer, (kind,), shown)


def _pick(rng: np.random.Generator, choices):
    return choices[int(rng.integers(len(choices)))]


_ASK = {
    "existence": Asker._existence,
    "where": Asker._where,
    "what": Asker._what,
    "relation": Asker._relation,
    "count": Asker._count,
    "odd": Asker._odd,
    "small": Asker._small,
}
#: The tasks, in the order that tables show them; the last is about two scenes.
TASKS = (*_ASK, "pair")
