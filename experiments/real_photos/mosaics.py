"""Scenes: photographs at random places and in random sizes on a plain ground, and how to draw and render them.

A scene is its number: the same number gives the same scene, on any machine with the same photographs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kinds import Split

Box = tuple[int, int, int, int]

#: What a scene is drawn for. Scenes of each sort take turns, and the two of a pair are of one sort.
SORTS = ("mixed", "counts", "odd", "small")
#: How often a scene of so many by so many places is drawn; places are never smaller than `SMALLEST` pixels.
GRIDS = {2: 0.35, 3: 0.35, 4: 0.18, 5: 0.07, 6: 0.05}
SMALLEST, MOST_ALIKE = 56, 4
#: The side of the one small photograph among large ones, in pixels at least and as a share of a place at most.
SMALL_SIDE, SMALL_SHARE = 42, 0.42
#: Shares: of places that stay empty, and of kinds that the second scene of a pair takes from the first.
EMPTY, SHARED = 0.1, 0.4
STREAMS: Mapping[Split, int] = {"train": 1, "test": 2}


@dataclass(frozen=True)
class Tile:
    """A photograph in a scene.

    Parameters
    ----------
    kind : str
        What it shows.
    path : Path
    box : (int, int, int, int)
        Left, top, right and bottom in pixels.
    part : (float, float, float)
        How much of the largest square in the photograph is shown, and where the rest is cut off, across and down.
    mirrored : bool
    """

    kind: str
    path: Path
    box: Box
    part: tuple[float, float, float]
    mirrored: bool

    @property
    def centre(self) -> tuple[float, float]:
        """Across and down, in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def area(self) -> int:
        """In pixels."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


@dataclass(frozen=True)
class Mosaic:
    """A scene of `side` by `side` pixels."""

    side: int
    sort: str
    ground: tuple[int, int, int]
    tiles: tuple[Tile, ...]


def draw_mosaic(number: int, photographs: Mapping[str, Sequence[Path]], split: Split, side: int) -> Mosaic:
    """Return scene `number`.

    Parameters
    ----------
    number : int
        Scenes 2 k and 2 k + 1 are a pair: they are of one sort and have some kinds in common.
    photographs : mapping
        Those of the split, by kind.
    split : {"train", "test"}
    side : int
        Pixels.
    """
    rng = np.random.default_rng([STREAMS[split], side, number])
    sort = SORTS[number // 2 % len(SORTS)]
    places = _places(rng, sort, side)
    kinds = _kinds(rng, sort, len(places), list(photographs))
    if number % 2:
        before = list(dict.fromkeys(tile.kind for tile in draw_mosaic(number - 1, photographs, split, side).tiles))
        kinds = _shared(rng, kinds, before)
    tiles = []
    for index, (kind, place) in enumerate(zip(kinds, places, strict=True)):
        width = place[2] - place[0]
        size = round(width * rng.uniform(0.75, 1))
        if sort == "small" and index == 0:
            size = max(SMALL_SIDE, round(width * rng.uniform(0.28, SMALL_SHARE)))
        left, top = (int(place[axis] + rng.integers(width - size + 1)) for axis in (0, 1))
        path = photographs[kind][rng.integers(len(photographs[kind]))]
        part = (float(rng.uniform(0.8, 1)), float(rng.random()), float(rng.random()))
        tiles.append(Tile(kind, path, (left, top, left + size, top + size), part, bool(rng.random() < 0.5)))
    ground = tuple(int(value) for value in rng.integers(40, 216, size=3))
    return Mosaic(side, sort, ground, tuple(tiles))


def _places(rng: np.random.Generator, sort: str, side: int) -> list[Box]:
    """Return square places that do not overlap, in random order."""
    grids = [grid for grid in GRIDS if side // grid >= SMALLEST and _suits(sort, grid)]
    weights = np.array([GRIDS[grid] for grid in grids])
    grid = int(rng.choice(grids, p=weights / weights.sum()))
    edges = [round(number * side / grid) for number in range(grid + 1)]
    cells = {(row, column): 1 for row in range(grid) for column in range(grid)}
    if sort == "mixed" and grid > 2 and rng.random() < 0.5:
        # One photograph takes four places.
        row, column = (int(value) for value in rng.integers(grid - 1, size=2))
        for cell in ((row, column + 1), (row + 1, column), (row + 1, column + 1)):
            del cells[cell]
        cells[row, column] = 2
    order = [list(cells)[index] for index in rng.permutation(len(cells))]
    empty = 0 if sort in ("odd", "small") else int((rng.random(len(order) - 2) < EMPTY).sum())
    chosen = order[: len(order) - empty]
    return [
        (edges[column], edges[row], edges[column + cells[row, column]], edges[row + cells[row, column]])
        for row, column in chosen
    ]


def _suits(sort: str, grid: int) -> bool:
    return {"mixed": True, "counts": 3 <= grid <= 4, "odd": grid <= 4, "small": grid <= 3}[sort]


def _kinds(rng: np.random.Generator, sort: str, count: int, kinds: list[str]) -> list[str]:
    """Return what the photographs of a scene show, at most half of all kinds."""
    drawn = [kinds[index] for index in rng.permutation(len(kinds))]
    if sort == "odd":
        return [drawn[0], *[drawn[1]] * (count - 1)]
    if sort == "counts":
        times = rng.integers(1, MOST_ALIKE + 1, size=len(drawn))
        return [kind for kind, number in zip(drawn, times, strict=True) for _ in range(number)][:count]
    # At least half of all kinds are not there, so that there is something to ask about; some of the others come again.
    pool = drawn[: len(drawn) // 2]
    again = rng.integers(len(pool) // 2, size=max(0, count - len(pool)))
    return pool[:count] + [pool[index] for index in again]


def _shared(rng: np.random.Generator, kinds: list[str], before: list[str]) -> list[str]:
    """Replace some kinds by some of the scene before; equal ones stay equal and different ones different."""
    own = list(dict.fromkeys(kinds))
    others = [kind for kind in before if kind not in own]
    named = {kind: kind for kind in own}
    for kind in own:
        if others and rng.random() < SHARED:
            named[kind] = others.pop(int(rng.integers(len(others))))
    return [named[kind] for kind in kinds]


def render(mosaic: Mosaic) -> Image.Image:
    """Return a scene as an RGB image."""
    image = Image.new("RGB", (mosaic.side, mosaic.side), mosaic.ground)
    for tile in mosaic.tiles:
        with Image.open(tile.path) as opened:
            photograph = opened.convert("RGB")
        share, across, down = tile.part
        edge = round(min(photograph.size) * share)
        left, top = round((photograph.width - edge) * across), round((photograph.height - edge) * down)
        size = tile.box[2] - tile.box[0]
        shown = photograph.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge))
        image.paste(ImageOps.mirror(shown) if tile.mirrored else shown, tile.box[:2])
    return image
