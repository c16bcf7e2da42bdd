"""Make the pictures that the package ships from their sources: emoji, characters, handwriting, photographs.

The emoji font is Debian's ``fonts-noto-color-emoji``; everything else comes with the extra `training`::

    python training/make_assets.py /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import skimage
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

from photographs import PHOTOGRAPHS
from zooprune.bundled.assets import FOLDER, FONTS, GLYPH_SIZE, SHEET_COLUMNS, SPRITE
from zooprune.bundled.vocabulary import CHARACTERS, COLOURED, THINGS

#: The only size the emoji font's bitmaps come in.
EMOJI_SIZE = 109
#: Shorter side of a photograph, in pixels.
PHOTOGRAPH_SIDE = 400


def draw_emoji(font_path: str) -> None:
    font = ImageFont.truetype(font_path, EMOJI_SIZE)
    emoji = [*THINGS.values(), *(one for row in COLOURED.values() for one in row)]
    rows = -(-len(emoji) // SHEET_COLUMNS)
    sheet = Image.new("RGBA", (SHEET_COLUMNS * SPRITE, rows * SPRITE))
    for place, one in enumerate(emoji):
        canvas = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(canvas).text((10, 10), one, font=font, embedded_color=True)
        drawn = canvas.crop(canvas.getbbox())
        drawn.thumbnail((SPRITE, SPRITE), Image.Resampling.LANCZOS)
        column, row = place % SHEET_COLUMNS, place // SHEET_COLUMNS
        corner = (column * SPRITE + (SPRITE - drawn.width) // 2, row * SPRITE + (SPRITE - drawn.height) // 2)
        sheet.paste(drawn, corner)
    sheet.save(FOLDER / "emoji.png", optimize=True)


def draw_characters() -> dict[str, np.ndarray]:
    """Draw every character of every font, so that no scene depends on how a version of FreeType rounds."""
    glyphs = np.zeros((len(FONTS), len(CHARACTERS), GLYPH_SIZE, GLYPH_SIZE + 8), dtype=np.uint8)
    widths = np.zeros(glyphs.shape[:2], dtype=np.uint8)
    heights = np.zeros(len(FONTS), dtype=np.uint8)
    for row, name in enumerate(FONTS):
        font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), GLYPH_SIZE)
        boxes = [tuple(int(edge) for edge in font.getbbox(character)) for character in CHARACTERS]
        top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
        heights[row] = bottom - top
        for place, (character, (left, _, right, _)) in enumerate(zip(CHARACTERS, boxes, strict=True)):
            widths[row, place] = right - left
            ink = Image.new("L", (right - left, bottom - top))
            ImageDraw.Draw(ink).text((-left, -top), character, font=font, fill=255)
            glyphs[row, place, : ink.height, : ink.width] = np.asarray(ink)
    return {"glyphs": glyphs, "glyph_widths": widths, "glyph_heights": heights}


def copy_photographs() -> None:
    for target in PHOTOGRAPHS["test"]:
        (source,) = (Path(skimage.__file__).parent / "data").glob(f"{Path(target).stem}.*")
        image = Image.open(source).convert("RGB")
        image.thumbnail([PHOTOGRAPH_SIDE * length // min(image.size) for length in image.size])
        image.save(FOLDER / target, lossless=True, quality=100, method=6)


def main(font_path: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    draw_emoji(font_path)
    digits = load_digits()
    written = {"digits": digits.images.astype(np.uint8), "digit_labels": digits.target.astype(np.uint8)}
    np.savez_compressed(FOLDER / "drawings.npz", **written, **draw_characters())
    copy_photographs()


if __name__ == "__main__":
    main(sys.argv[1])
