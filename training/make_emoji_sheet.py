"""Draw the sprite sheet of the bundled scenes from the Noto Color Emoji font.

The font is Debian's ``fonts-noto-color-emoji``::

    python training/make_emoji_sheet.py /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from zooprune.bundled.scenes import SHEET, SHEET_COLUMNS, SPRITE
from zooprune.bundled.vocabulary import COLOURED, THINGS

#: The only size the font's bitmaps come in.
FONT_SIZE = 109


def main(font_path: str) -> None:
    font = ImageFont.truetype(font_path, FONT_SIZE)
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
    Path(SHEET).parent.mkdir(exist_ok=True)
    sheet.save(SHEET, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
