"""The layout of a scene, drawn from a seed.

The two splits share the looks of the emoji and nothing else: photographs, handwritten digits, sign texts, label texts
and layouts of ``test`` never occur in ``train``.
"""

from __future__ import annotations

import string
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from photographs import PHOTOGRAPHS, photograph
from zooprune.bundled.assets import FONTS, digits, glyph
from zooprune.bundled.layout import SIDE, Background, Box, Layout, Thing
from zooprune.bundled.vocabulary import CHARACTERS, COLOURED, COLOURS, THINGS

Split = Literal["train", "test"]
Theme = Literal["all", "texts", "counts"]

#: Side of a patch in pixels.
PATCH = 14
#: Handwritten digits from here on are for the test.
HELD_OUT_DIGITS = 1438

WORDS = (
    "ACE ACT AGE AIR ALE ANT ARC ARM ART ASH BAG BAKE BALL BAND BANK BAR BARN BATH BAY BEAN BED BELT BIKE BIRD BOAT"
    " BOLD BONE BOW BOX BUS CAFE CAKE CALM CAMP CAP CARD CAVE CITY CLAY CLUB COAL COAT COLD COOK CORN CROW CUP DECK"
    " DESK DISH DOCK DOOR DOWN DUCK EAST EASY EXIT FARM FAST FERN FILM FIRE FISH FLAG FOOD FORK FREE GAME GATE GIFT"
    " GOLD GOOD HALL HAND HARP HELP HIGH HILL HOME HOPE HOT ICE INN IRON JAM JAZZ JOY JUMP KEEP KING KITE LAKE LAMP"
    " LAND LAW LEAF LEFT LIFE LIFT LIME LINE LION LOCK LOVE MAIL MAIN MAP MILK MILL MINT MOON NEST NEW NORTH NOTE OAK"
    " OIL OPEN PARK PATH PEAR PIER PINE PLAY POND POOL PORT PULL PUSH RAIL RAIN RED REST RICE RING ROAD ROCK ROOF ROPE"
    " ROSE SAFE SALE SALT SAND SEA SHIP SHOP SHOW SLOW SNOW SOAP SONG SOUP STAR STAY STOP SUN SURF SWIM TAXI TEA TIDE"
    " TIME TOWN TOY TRAM TREE TUNA VAN VIEW WALK WALL WAVE WEST WIND WOLF WOOD YARD ZERO ZINC ZONE ZOO"
).split()
LONGEST_SIGN = 4
# In a code nothing tells O from 0 or I from 1.
_CODE_CHARACTERS = "".join(character for character in CHARACTERS if character not in "O0I1")
_GAP = 3
#: Signs, and labels, of a scene about texts.
_TEXTS = 4


def draw_layout(seed: int, split: Split, side: int = SIDE, theme: Theme = "all") -> Layout:
    """Draw the layout that belongs to `seed`.

    Parameters
    ----------
    seed : int
        Any non-negative number; the same number gives the same layout.
    split : {"train", "test"}
        Which photographs, digits and texts may appear.
    side : int
        Width and height in pixels. A smaller scene is a window of a full one, with its corner on a patch's corner:
        it holds fewer things of the same size.
    theme : {"all", "texts", "counts"}
        "texts" has several signs and labels and little else, to learn to read; "counts" one, two, three and four
        copies of four things, to learn to count. By default a scene has one sign, one label and one digit or none,
        and copies of one thing.
    """
    rng = np.random.default_rng([seed, side, split == "test"])
    column, row = (int(number) * PATCH for number in rng.integers((SIDE - side) // PATCH + 1, size=2))
    background = _background(rng, split, side)
    things: list[Thing] = []
    for draw in _PLANS[theme](rng, split, side):
        thing = draw(rng)
        corner = _free_corner(rng, thing, [other.box for other in things], side)
        if corner is not None:
            things.append(_moved(thing, *corner))
    return Layout(side, background, tuple(things), (column, row))


_Draw = Callable[[np.random.Generator], Thing]


def _plan(rng: np.random.Generator, split: Split, side: int) -> list[_Draw]:
    """Decide what the scene will hold, largest first so that everything finds room."""
    share = (side / SIDE) ** 2
    texts: list[_Draw] = []
    if rng.random() < 0.75:
        texts.append(partial(_sign, split=split))
    if rng.random() < 0.6:
        texts.append(partial(_digit, split=split))
    if rng.random() < 0.7:
        texts.append(partial(_label, split=split))
    every = [*THINGS, *COLOURED]
    names = [every[i] for i in rng.permutation(len(every))]
    coloured = [name for name in names if name in COLOURED]
    wanted = int(rng.integers(4, 8)) if share > 0.5 else int(rng.integers(1, 4))
    # Coloured things are few among the names, but colours are asked for as often as anything.
    chosen = coloured[: int(rng.integers(0, 3))] if rng.random() < 0.7 else []
    copies = int(rng.integers(1, 5))
    repeated = names[0]
    chosen += [name for name in names if name not in chosen and name != repeated][: max(0, wanted - len(chosen))]
    return texts + [partial(_emoji, name=name) for name in [repeated] * copies + chosen]


def _plan_texts(rng: np.random.Generator, split: Split, side: int) -> list[_Draw]:
    name = [*THINGS][int(rng.integers(len(THINGS)))]
    texts = [partial(_sign, split=split)] * _TEXTS + [partial(_label, split=split)] * _TEXTS
    return [*texts, partial(_emoji, name=name)]


def _plan_counts(rng: np.random.Generator, split: Split, side: int) -> list[_Draw]:
    every = [*THINGS, *COLOURED]
    copied = [every[i] for i in rng.permutation(len(every))[:4]]
    return [partial(_emoji, name=name) for copies, name in enumerate(copied, start=1) for _ in range(copies)]


_PLANS = {"all": _plan, "texts": _plan_texts, "counts": _plan_counts}


def _background(rng: np.random.Generator, split: Split, side: int) -> Background:
    name = PHOTOGRAPHS[split][int(rng.integers(len(PHOTOGRAPHS[split])))]
    size = photograph(name).size
    crop = int(rng.uniform(0.5, 1.0) * min(size) * side / SIDE)
    left, top = (int(rng.integers(length - crop + 1)) for length in size)
    mirrored = bool(rng.random() < 0.5)
    red, green, blue = (round(float(gain), 3) for gain in rng.uniform(0.7, 1.2, size=3))
    return Background(
        name, (left, top, left + crop, top + crop), mirrored, (red, green, blue), round(float(rng.uniform(-20, 20)), 2)
    )


def _emoji(rng: np.random.Generator, name: str) -> Thing:
    colour = COLOURS[int(rng.integers(len(COLOURS)))] if name in COLOURED else None
    size = int(rng.integers(38, 67))
    return Thing(
        name,
        (0, 0, size, size),
        colour,
        size=size,
        mirrored=bool(rng.random() < 0.5),
        angle=round(float(rng.uniform(-20, 20)), 1),
        brightness=round(float(rng.uniform(0.85, 1.15)), 3),
    )


def _sign(rng: np.random.Generator, split: Split) -> Thing:
    text = _sign_text(rng, split)
    colour = COLOURS[int(rng.integers(len(COLOURS)))]
    font, size = int(rng.integers(len(FONTS))), int(rng.integers(30, 39))
    spacing, margin = int(rng.integers(2, 5)), int(rng.integers(7, 11))
    left, glyphs = margin, []
    for character in text:
        width, height = glyph(font, character, size).size
        # Wide enough that no patch column ever shows two characters whole.
        advance = max(width, PATCH)
        glyphs.append((left, margin, left + advance, margin + height))
        left += advance + spacing
    box = (0, 0, left - spacing + margin, height + 2 * margin)
    return Thing("sign", box, colour, text, tuple(glyphs), size=size, font=font)


def _sign_text(rng: np.random.Generator, split: Split) -> str:
    while True:
        kind = rng.random()
        if kind < 0.4:
            text = WORDS[int(rng.integers(len(WORDS)))]
        else:
            alphabet = _CODE_CHARACTERS if kind < 0.8 else string.digits
            text = "".join(rng.choice(list(alphabet), size=int(rng.integers(2, LONGEST_SIGN + 1))))
        if len(text) <= LONGEST_SIGN and _belongs(text, split):
            return text


def _digit(rng: np.random.Generator, split: Split) -> Thing:
    first, last = (HELD_OUT_DIGITS, len(digits()[1])) if split == "test" else (0, HELD_OUT_DIGITS)
    which, size = int(rng.integers(first, last)), int(rng.integers(38, 55))
    return Thing(
        "digit",
        (0, 0, size + 8, size + 8),
        text=str(digits()[1][which]),
        size=size,
        angle=round(float(rng.uniform(-12, 12)), 1),
        drawing=which,
        ink=int(rng.integers(30, 120)),
    )


def _label(rng: np.random.Generator, split: Split) -> Thing:
    """Fine print: one or two small characters, each of which fills one patch."""
    while True:
        text = "".join(rng.choice(list(_CODE_CHARACTERS), size=int(rng.integers(1, 3))))
        # Single characters are too few to hold some of them back.
        if len(text) == 1 or _belongs(text, split):
            break
    glyphs = tuple((PATCH * place, 0, PATCH * (place + 1), PATCH) for place in range(len(text)))
    font, size = int(rng.integers(len(FONTS))), int(rng.integers(13, 16))
    return Thing("label", (0, 0, PATCH * len(text), PATCH), text=text, glyphs=glyphs, size=size, font=font)


def _belongs(text: str, split: Split) -> bool:
    """One text in eight, by checksum, is kept for the test."""
    return (zlib.crc32(text.encode()) % 8 == 0) == (split == "test")


def _free_corner(rng: np.random.Generator, thing: Thing, taken: list[Box], side: int) -> tuple[int, int] | None:
    """Find room away from everything `taken`, or give up."""
    _, _, width, height = thing.box
    if width > side or height > side:
        return None
    grid = PATCH if thing.name == "label" else 1
    for _ in range(60):
        left = int(rng.integers((side - width) // grid + 1)) * grid
        top = int(rng.integers((side - height) // grid + 1)) * grid
        right, bottom = left + width, top + height
        if all(
            left > x1 + _GAP or right < x0 - _GAP or top > y1 + _GAP or bottom < y0 - _GAP for x0, y0, x1, y1 in taken
        ):
            return left, top
    return None


def _moved(thing: Thing, left: int, top: int) -> Thing:
    """Return a thing with its corner, which was at (0, 0), somewhere else."""
    glyphs = tuple(_shift(glyph, left, top) for glyph in thing.glyphs)
    return replace(thing, box=_shift(thing.box, left, top), glyphs=glyphs)


def _shift(box: Box, left: int, top: int) -> Box:
    return box[0] + left, box[1] + top, box[2] + left, box[3] + top
