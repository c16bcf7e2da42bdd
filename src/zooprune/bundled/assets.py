"""The pictures that the scenes of the benchmark are made of."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from zooprune.bundled.vocabulary import CHARACTERS, COLOURED, COLOURS, THINGS

FOLDER = Path(__file__).parent / "assets"

#: Side of an emoji in its sheet, and how many stand in a row.
SPRITE, SHEET_COLUMNS = 72, 10
#: Font size at which characters are stored, in pixels.
GLYPH_SIZE = 48
FONTS = (
    "DejaVuSans-Bold.ttf", "DejaVuSans.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSerif.ttf",
    "STIXGeneralBol.ttf", "cmss10.ttf",
)  # fmt: skip


@cache
def photograph(name: str) -> Image.Image:
    """Return one of the photographs that ship with the package."""
    return Image.open(FOLDER / name).convert("RGB")


@cache
def sprites() -> dict[tuple[str, str | None], Image.Image]:
    """Return the emoji by name and colour, RGBA."""
    names: list[tuple[str, str | None]] = [(name, None) for name in THINGS]
    names += [(name, colour) for name in COLOURED for colour in COLOURS]
    sheet = Image.open(FOLDER / "emoji.png").convert("RGBA")
    found = {}
    for place, name in enumerate(names):
        left, top = place % SHEET_COLUMNS * SPRITE, place // SHEET_COLUMNS * SPRITE
        found[name] = sheet.crop((left, top, left + SPRITE, top + SPRITE))
    return found


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return handwritten digits, (1797, 8, 8) uint8 from 0 to 16, and which digit each is, (1797,)."""
    stored = _drawings()
    return stored["digits"], stored["digit_labels"]


@cache
def glyph(font: int, character: str, size: int) -> Image.Image:
    """Return a character's ink at a font size in pixels: greyscale, as high as the font's line, as wide as itself."""
    stored = _drawings()
    place = CHARACTERS.index(character)
    width, height = int(stored["glyph_widths"][font, place]), int(stored["glyph_heights"][font])
    ink = Image.fromarray(stored["glyphs"][font, place, :height, :width])
    scale = size / GLYPH_SIZE
    return ink.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)


@cache
def _drawings() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "drawings.npz", allow_pickle=False) as stored:
        return dict(stored)
