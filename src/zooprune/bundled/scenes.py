"""Scenes to ask questions about: small real things scattered over a photograph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from zooprune.bundled.assets import digits, glyph, photograph, sprites
from zooprune.bundled.layout import Background, Layout, Thing

_SIGN_COLOURS = {
    "red": (200, 30, 35), "orange": (240, 130, 20), "yellow": (250, 215, 50), "green": (30, 130, 60),
    "blue": (35, 80, 185), "purple": (120, 50, 150), "brown": (110, 70, 40), "black": (20, 20, 22),
    "white": (245, 245, 245),
}  # fmt: skip
_PAPER, _INK = (250, 248, 240), (15, 15, 15)


def render(layout: Layout, photograph: Callable[[str], Image.Image] = photograph) -> Image.Image:
    """Make the picture of a layout: the same pixels for the same layout.

    Parameters
    ----------
    layout : Layout
    photograph : callable
        Returns the photograph of a name; by default one of those that ship with the package.

    Returns
    -------
    PIL.Image.Image
        RGB, `layout.side` pixels wide and high.
    """
    canvas = _backdrop(layout.background, layout.side, photograph(layout.background.photograph))
    for thing in layout.things:
        drawn = _DRAW.get(thing.name, _emoji)(thing)
        canvas.paste(drawn, thing.box[:2], drawn)
    return canvas


def _backdrop(background: Background, side: int, whole: Image.Image) -> Image.Image:
    image = whole.resize((side, side), Image.Resampling.BILINEAR, box=background.crop)
    if background.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    gain, shift = np.array(background.gain, dtype=np.float32), np.float32(background.shift)
    pixels = np.asarray(image, dtype=np.float32) * gain + shift
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _emoji(thing: Thing) -> Image.Image:
    sprite = sprites()[thing.name, thing.colour]
    if thing.mirrored:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    sprite = sprite.resize((thing.size, thing.size), Image.Resampling.BILINEAR)
    sprite = sprite.rotate(thing.angle, Image.Resampling.BILINEAR)
    shaded = ImageEnhance.Brightness(sprite.convert("RGB")).enhance(thing.brightness)
    shaded.putalpha(sprite.getchannel("A"))
    return shaded


def _sign(thing: Thing) -> Image.Image:
    board = _SIGN_COLOURS[str(thing.colour)]
    ink = _INK if sum(board) > 420 else (250, 250, 250)
    image = Image.new("RGBA", _size(thing))
    pencil = ImageDraw.Draw(image)
    pencil.rounded_rectangle((0, 0, image.width - 1, image.height - 1), 6, fill=board, outline=ink, width=2)
    _write(image, thing, ink)
    return image


def _label(thing: Thing) -> Image.Image:
    image = Image.new("RGBA", _size(thing), (*_PAPER, 255))
    _write(image, thing, _INK)
    return image


def _write(image: Image.Image, thing: Thing, ink: tuple[int, int, int]) -> None:
    """Put every character in the middle of its box."""
    for character, (left, top, right, bottom) in zip(str(thing.text), thing.glyphs, strict=True):
        shape = glyph(thing.font, character, thing.size)
        column = (left + right - shape.width) // 2 - thing.box[0]
        row = (top + bottom - shape.height) // 2 - thing.box[1]
        image.paste((*ink, 255), (column, row), shape)


def _digit(thing: Thing) -> Image.Image:
    drawn = Image.fromarray((digits()[0][thing.drawing] * 15.9).astype(np.uint8))
    drawn = drawn.resize((thing.size, thing.size), Image.Resampling.BICUBIC)
    drawn = drawn.rotate(thing.angle, Image.Resampling.BILINEAR)
    paper = Image.new("RGBA", _size(thing), (*_PAPER, 255))
    paper.paste((30, 30, thing.ink, 255), (4, 4), drawn)
    return paper


def _size(thing: Thing) -> tuple[int, int]:
    left, top, right, bottom = thing.box
    return right - left, bottom - top


_DRAW = {"sign": _sign, "digit": _digit, "label": _label}
