"""Scenes to ask questions about: small real things scattered over a photograph.

Everything is drawn from a seed. The two splits share the looks of the emoji and nothing else: photographs,
handwritten digits, sign texts and layouts of ``test`` never occur in ``train``.
"""

from __future__ import annotations

import string
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from zooprune.bundled.vocabulary import CHARACTERS, COLOURED, COLOURS, THINGS

Split = Literal["train", "test"]

#: Side of a patch in pixels, and of a full scene.
PATCH, SIDE = 14, 336

SHEET = Path(__file__).parent / "assets" / "emoji.png"
SPRITE, SHEET_COLUMNS = 72, 10

PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "grass.png", "hubble_deep_field.jpg", "ihc.png",
        "moon.png", "motorcycle_left.png", "retina.jpg",
    ),
    "test": ("coffee.png", "gravel.png", "rocket.jpg"),
}  # fmt: skip
FONTS = (
    "DejaVuSans-Bold.ttf", "DejaVuSans.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSerif.ttf",
    "STIXGeneralBol.ttf", "cmss10.ttf",
)  # fmt: skip
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
_LONGEST_SIGN = 4
# In a code nothing tells O from 0 or I from 1.
_CODE_CHARACTERS = "".join(character for character in CHARACTERS if character not in "O0I1")

_SIGN_COLOURS = {
    "red": (200, 30, 35), "orange": (240, 130, 20), "yellow": (250, 215, 50), "green": (30, 130, 60),
    "blue": (35, 80, 185), "purple": (120, 50, 150), "brown": (110, 70, 40), "black": (20, 20, 22),
    "white": (245, 245, 245),
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """Something placed in a scene.

    `box` is left, top, right, bottom in pixels; `text` what a sign says or which digit was written, and
    `glyphs` the boxes of a sign's characters in reading order.
    """

    name: str
    box: tuple[int, int, int, int]
    colour: str | None = None
    text: str | None = None
    glyphs: tuple[tuple[int, int, int, int], ...] = ()

    @property
    def centre(self) -> tuple[float, float]:
        """Column and row of the middle, in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Scene:
    """An image and everything that was put into it.

    A scene smaller than `SIDE` is a window of a full one; `origin` is where its top left corner lies there.
    """

    image: Image.Image
    things: tuple[Thing, ...]
    origin: tuple[int, int] = (0, 0)


def draw_scene(seed: int, split: Split, side: int = SIDE, signs: int | None = None) -> Scene:
    """Draw the scene that belongs to `seed`.

    Parameters
    ----------
    seed : int
        Any non-negative number; the same number gives the same scene.
    split : {"train", "test"}
        Which photographs, digits and sign texts may appear.
    side : int
        Width and height in pixels. A smaller scene is a window of a full one, with its corner on a patch's corner:
        it holds fewer things of the same size.
    signs : int, optional
        Draw that many signs and little else, to learn to read; by default a scene has one or none.
    """
    rng = np.random.default_rng([seed, side, split == "test"])
    column, row = (int(number) * PATCH for number in rng.integers((SIDE - side) // PATCH + 1, size=2))
    canvas = _background(rng, split, side)
    things: list[Thing] = []
    for place in _plan(rng, split, side) if signs is None else _signs_alone(rng, split, signs):
        drawn = place(rng)
        box = _free_box(rng, drawn.image.size, [thing.box for thing in things], side)
        if box is None:
            continue
        canvas.paste(drawn.image, box[:2], drawn.image)
        glyphs = tuple((x0 + box[0], y0 + box[1], x1 + box[0], y1 + box[1]) for x0, y0, x1, y1 in drawn.glyphs)
        things.append(Thing(drawn.name, box, drawn.colour, drawn.text, glyphs))
    return Scene(canvas, tuple(things), (column, row))


@dataclass(frozen=True)
class _Drawn:
    image: Image.Image
    name: str
    colour: str | None = None
    text: str | None = None
    glyphs: tuple[tuple[int, int, int, int], ...] = ()


def _plan(rng: np.random.Generator, split: Split, side: int) -> list[Callable[[np.random.Generator], _Drawn]]:
    """Decide what the scene will hold, largest first so that everything finds room."""
    share = (side / SIDE) ** 2
    places: list[Callable[[np.random.Generator], _Drawn]] = []
    if rng.random() < 0.75:
        places.append(partial(_sign, split=split))
    if rng.random() < 0.6:
        places.append(partial(_digit, split=split))
    every = [*THINGS, *COLOURED]
    names = [every[i] for i in rng.permutation(len(every))]
    coloured = [name for name in names if name in COLOURED]
    wanted = int(rng.integers(4, 8)) if share > 0.5 else int(rng.integers(1, 4))
    # Coloured things are few among the names, but colours are asked for as often as anything.
    chosen = coloured[: int(rng.integers(0, 3))] if rng.random() < 0.7 else []
    copies = int(rng.integers(1, 5))
    repeated = names[0]
    chosen += [name for name in names if name not in chosen and name != repeated][: max(0, wanted - len(chosen))]
    return places + [partial(_object, name=name) for name in [repeated] * copies + chosen]


def _signs_alone(rng: np.random.Generator, split: Split, signs: int) -> list[Callable[[np.random.Generator], _Drawn]]:
    name = [*THINGS][int(rng.integers(len(THINGS)))]
    return [*[partial(_sign, split=split)] * signs, partial(_object, name=name)]


def _background(rng: np.random.Generator, split: Split, side: int) -> Image.Image:
    photographs = _photographs(split)
    photograph = photographs[int(rng.integers(len(photographs)))]
    crop = int(rng.uniform(0.5, 1.0) * min(photograph.size) * side / SIDE)
    left, top = (int(rng.integers(length - crop + 1)) for length in photograph.size)
    image = photograph.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + crop, top + crop))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(image, dtype=np.float32) * rng.uniform(0.7, 1.2, size=3) + rng.uniform(-20, 20)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _object(rng: np.random.Generator, name: str) -> _Drawn:
    if name in COLOURED:
        colour = int(rng.integers(len(COLOURS)))
        sprite = _sprites()[name, COLOURS[colour]]
    else:
        colour, sprite = None, _sprites()[name, None]
    size = int(rng.integers(38, 67))
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    sprite = sprite.resize((size, size), Image.Resampling.BILINEAR)
    sprite = sprite.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR)
    sprite = _shade(sprite, rng.uniform(0.85, 1.15))
    return _Drawn(sprite, name, None if colour is None else COLOURS[colour])


def _shade(image: Image.Image, factor: float) -> Image.Image:
    shaded = ImageEnhance.Brightness(image.convert("RGB")).enhance(factor)
    shaded.putalpha(image.getchannel("A"))
    return shaded


def _sign(rng: np.random.Generator, split: Split) -> _Drawn:
    text = _sign_text(rng, split)
    colour = COLOURS[int(rng.integers(len(COLOURS)))]
    board = _SIGN_COLOURS[colour]
    ink = (15, 15, 15) if sum(board) > 420 else (250, 250, 250)
    font = _font(FONTS[int(rng.integers(len(FONTS)))], int(rng.integers(30, 39)))
    spacing = int(rng.integers(2, 5))
    boxes = [tuple(int(edge) for edge in font.getbbox(character)) for character in text]
    top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
    margin = int(rng.integers(7, 11))
    left, glyphs = margin, []
    for x0, _, x1, _ in boxes:
        # Wide enough that no patch column ever shows two characters whole.
        advance = max(x1 - x0, PATCH)
        glyphs.append((left, margin, left + advance, margin + bottom - top))
        left += advance + spacing
    image = Image.new("RGBA", (left - spacing + margin, bottom - top + 2 * margin))
    pencil = ImageDraw.Draw(image)
    pencil.rounded_rectangle((0, 0, image.width - 1, image.height - 1), 6, fill=board, outline=ink, width=2)
    for character, (x0, _, x1, _), glyph in zip(text, boxes, glyphs, strict=True):
        middle = (glyph[0] + glyph[2]) / 2 - (x0 + x1) / 2
        pencil.text((middle, margin - top), character, font=font, fill=ink)
    return _Drawn(image, "sign", colour, text, tuple(glyphs))


def _sign_text(rng: np.random.Generator, split: Split) -> str:
    while True:
        kind = rng.random()
        if kind < 0.4:
            text = WORDS[int(rng.integers(len(WORDS)))]
        else:
            alphabet = _CODE_CHARACTERS if kind < 0.8 else string.digits
            text = "".join(rng.choice(list(alphabet), size=int(rng.integers(2, _LONGEST_SIGN + 1))))
        # One text in eight, by checksum, is kept for the test.
        if len(text) <= _LONGEST_SIGN and (zlib.crc32(text.encode()) % 8 == 0) == (split == "test"):
            return text


def _digit(rng: np.random.Generator, split: Split) -> _Drawn:
    images, labels = _digits(split)
    which = int(rng.integers(len(images)))
    size = int(rng.integers(38, 55))
    ink = Image.fromarray((images[which] * 15.9).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    ink = ink.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR)
    paper = Image.new("RGBA", (size + 8, size + 8), (250, 248, 240, 255))
    paper.paste((30, 30, int(rng.integers(30, 120)), 255), (4, 4), ink)
    return _Drawn(paper, "digit", text=str(labels[which]))


def _free_box(
    rng: np.random.Generator, size: tuple[int, int], taken: list[tuple[int, int, int, int]], side: int
) -> tuple[int, int, int, int] | None:
    """Find room for `size` away from everything `taken`, or give up."""
    width, height = size
    if width > side or height > side:
        return None
    gap = 3
    for _ in range(60):
        left, top = int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1))
        right, bottom = left + width, top + height
        if all(left > x1 + gap or right < x0 - gap or top > y1 + gap or bottom < y0 - gap for x0, y0, x1, y1 in taken):
            return left, top, right, bottom
    return None


@cache
def _photographs(split: Split) -> list[Image.Image]:
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    photographs = [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS[split]]
    for photograph in photographs:
        # No scene shows more than this, and small photographs are quick to crop.
        longest = 2 * SIDE * max(photograph.size) // min(photograph.size)
        photograph.thumbnail((longest, longest))
    return photographs


@cache
def _digits(split: Split) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    held_out = np.arange(len(digits.images)) >= 0.8 * len(digits.images)
    chosen = held_out if split == "test" else ~held_out
    return digits.images[chosen], digits.target[chosen]


@cache
def _sprites() -> dict[tuple[str, str | None], Image.Image]:
    names: list[tuple[str, str | None]] = [(name, None) for name in THINGS]
    names += [(name, colour) for name in COLOURED for colour in COLOURS]
    sheet = Image.open(SHEET).convert("RGBA")
    sprites = {}
    for place, name in enumerate(names):
        left, top = place % SHEET_COLUMNS * SPRITE, place // SHEET_COLUMNS * SPRITE
        sprites[name] = sheet.crop((left, top, left + SPRITE, top + SPRITE))
    return sprites


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
