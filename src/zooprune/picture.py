"""Show what was kept: the image with dropped patches dimmed, the map of scores, and who stands in for whom.

Of one method in large, or of many side by side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zooprune.reports import ImageReport
from zooprune.tokens import NEWLINE, Selection

#: The width of an image that is shown in large.
_SIDE = 504
#: Flat images get no flatter than this.
_FLATTEST = 14
_MARGIN = 16
_INK, _GREY, _PAPER = (25, 28, 36), (95, 100, 112), (255, 255, 255)
#: Anchors of a map from low to high, dark violet to yellow, that greyscale and colour-blind readers can follow.
_COLOURS = np.array([(48, 18, 80), (110, 40, 130), (190, 60, 110), (240, 120, 70), (253, 231, 76)], dtype=np.float64)


#: Of a gallery: the width of a panel, how many stand in a row, and what is between them.
_SMALL, _ACROSS, _GAP = 192, 5, 14
#: Signs that do not rely on their colour, as strokes in a square of 14.
_RIGHT, _WRONG = (((1, 8), (5, 12), (13, 2)),), (((2, 2), (12, 12)), ((2, 12), (12, 2)))
_GREEN, _RED, _FRAME = (0, 120, 70), (190, 30, 45), (255, 0, 220)


class CannotDrawError(ValueError):
    """The tokens of an image have no place in a picture of it."""


@dataclass(frozen=True)
class Panel:
    """What one method keeps of an image, and what the model answers.

    Parameters
    ----------
    name, group : str
        Of the method; panels of a group stand together under its heading.
    answer : str
    right : bool
        Whether the answer is right.
    images : tuple of ImageReport
        What a session reported of the image.
    """

    name: str
    group: str
    answer: str
    right: bool
    images: tuple[ImageReport, ...]

    @property
    def selections(self) -> list[Selection]:
        """What was kept, an entry per image that was chosen among."""
        return [image.selection for image in self.images]


def draw_kept(image: Image.Image, reports: Sequence[ImageReport], caption: str, *, scores_label: str) -> Image.Image:
    """Return the picture of one pruned image.

    Parameters
    ----------
    image : PIL.Image.Image
        As the model saw it, RGB.
    reports : sequence of ImageReport
        What a session reported of it.
    caption : str
        Text under the pictures, one line per line.
    scores_label : str
        What the scores are, for the legend.

    Raises
    ------
    CannotDrawError
        If the model read the image as several tiles, or does not say where tokens lie.
    """
    views, selection = draw_views(image, reports), reports[0].selection
    headings = {
        "kept": f"kept {len(selection)} of {selection.total} visual tokens",
        "regions": "which kept patch stands in for which",
        "scores": f"{scores_label}, by rank",
    }
    return _page(list(views.values()), [headings[name] for name in views], caption, legend="scores" in views)


def draw_views(image: Image.Image, reports: Sequence[ImageReport]) -> dict[str, Image.Image]:
    """Return the pictures of one pruned image, each by itself.

    Parameters
    ----------
    image : PIL.Image.Image
        As the model saw it, RGB.
    reports : sequence of ImageReport
        What a session reported of it.

    Returns
    -------
    dict of str to PIL.Image.Image
        "kept": the kept patches in colour. "regions", where kept tokens stand in for dropped ones: which for which.
        "scores", where the method scores tokens: the map of their ranks.

    Raises
    ------
    CannotDrawError
        As `draw_kept`.
    """
    selection, raster = reports[0].selection, _Raster(reports)
    shown = image.resize(_panel(image.width, image.height), Image.Resampling.LANCZOS)
    kept = raster.laid_out(selection.mask, False)
    views = {"kept": _dim(shown, kept)}
    if selection.into is not None:
        views["regions"] = _regions(shown, raster.laid_out(selection.into, -1), kept)
    if selection.scores is not None:
        views["scores"] = _heat(shown, raster.laid_out(selection.scores.double(), 0.0, _ranks))
    return views


def draw_gallery(image: Image.Image, panels: Sequence[Panel], title: str, caption: str) -> Image.Image:
    """Return one picture of what every method keeps of an image.

    Parameters
    ----------
    image : PIL.Image.Image
        As the model saw it, RGB.
    panels : sequence of Panel
        Those of a group one after another.
    title, caption : str
        Text above the panels, one line per line.

    Raises
    ------
    CannotDrawError
        As `draw_kept`.
    """
    small = image.resize(_panel(image.width, image.height, _SMALL), Image.Resampling.LANCZOS)
    across, down = _SMALL + _GAP, small.height + 58
    groups = [list(group) for _, group in groupby(panels, key=lambda panel: panel.group)]
    rows = sum(-(-len(group) // _ACROSS) for group in groups)
    lines = caption.splitlines()
    top = _MARGIN + 34 + 22 * len(lines) + 8
    page = Image.new("RGB", (2 * _MARGIN + _ACROSS * across - _GAP, top + 38 * len(groups) + down * rows), _PAPER)
    pencil = ImageDraw.Draw(page)
    pencil.text((_MARGIN, _MARGIN - 4), title, fill=_INK, font=ImageFont.load_default(22))
    for number, line in enumerate(lines):
        pencil.text((_MARGIN, _MARGIN + 30 + 22 * number), line, fill=_GREY, font=ImageFont.load_default(15))
    for group in groups:
        pencil.text((_MARGIN, top + 2), group[0].group, fill=_INK, font=ImageFont.load_default(17))
        pencil.line((_MARGIN, top + 27, page.width - _MARGIN, top + 27), fill=_GREY)
        top += 38
        for number, panel in enumerate(group):
            left, above = _MARGIN + number % _ACROSS * across, top + number // _ACROSS * down
            page.paste(_kept_and_merged(small, panel), (left, above))
            _label(pencil, left, above + small.height + 4, panel)
        top += -(-len(group) // _ACROSS) * down
    return page


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG; an older file stays until the new one is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        picture.save(temporary, "PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _kept_and_merged(image: Image.Image, panel: Panel) -> Image.Image:
    """Return the image with dropped patches dimmed and a frame around patches that are mixtures."""
    raster, selection = _Raster(panel.images), panel.selections[0]
    shown = _dim(image, raster.laid_out(selection.mask, False))
    pencil = ImageDraw.Draw(shown)
    mixtures = torch.zeros_like(selection.mask).index_fill(0, selection.index[selection.mass > 1], True)
    high, wide = image.height / raster.rows, image.width / raster.columns
    for row, column in np.argwhere(raster.laid_out(mixtures, False)):
        left, top = round(column * wide), round(row * high)
        # Patches of a very flat image are less than a pixel.
        right, bottom = max(left, round((column + 1) * wide) - 1), max(top, round((row + 1) * high) - 1)
        pencil.rectangle((left, top, right, bottom), outline=_FRAME)
    return shown


def _label(pencil: ImageDraw.ImageDraw, left: int, top: int, panel: Panel) -> None:
    """Write a method's name and its answer, with a sign for right or wrong."""
    selection = panel.selections[0]
    name = f"{panel.name}, all {selection.total} tokens" if selection.keeps_all else panel.name
    pencil.text((left, top), _shortened(name, 17, _SMALL), fill=_INK, font=ImageFont.load_default(17))
    colour = _GREEN if panel.right else _RED
    for stroke in _RIGHT if panel.right else _WRONG:
        pencil.line([(left + x, top + 26 + y) for x, y in stroke], fill=colour, width=2)
    answer = _shortened(" ".join(panel.answer.split()), 16, _SMALL - 20)
    pencil.text((left + 20, top + 23), answer, fill=colour, font=ImageFont.load_default(16))


def _shortened(text: str, size: int, width: int) -> str:
    """Return as much of a line as fits."""
    font = ImageFont.load_default(size)
    if font.getlength(text) <= width:
        return text
    fits = next(count for count in range(len(text), -1, -1) if font.getlength(text[:count] + "...") <= width)
    return text[:fits].rstrip() + "..."


class _Raster:
    """Where the tokens of an image that is one tile lie.

    Raises
    ------
    CannotDrawError
        If the model read the image as several tiles, or does not say where tokens lie.
    """

    def __init__(self, reports: Sequence[ImageReport]) -> None:
        positions = reports[0].positions
        self._shows = positions[:, 2] != NEWLINE
        if len(reports) > 1 or len(positions[self._shows, :2].unique(dim=0)) != 1:
            raise CannotDrawError(
                "a picture can be drawn of an image that is one tile, and this model cut it up otherwise; "
                "leave out --save"
            )
        self.rows, self.columns = (int(positions[:, axis].max()) + 1 for axis in (2, 3))
        self._place = (positions[:, 2] * self.columns + positions[:, 3])[self._shows].numpy()

    def laid_out(self, values: Tensor, empty: object, change: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Any:
        """Return a value per token as (rows, columns), changed by a function, and `empty` where there is no token."""
        given = change(values[self._shows].numpy())
        grid = np.full(self.rows * self.columns, empty, dtype=given.dtype)
        grid[self._place] = given
        return grid.reshape(self.rows, self.columns)


def _panel(width: int, height: int, side: int = _SIDE) -> tuple[int, int]:
    """Return the size at which an image is shown: as wide as there is room, and at most twice as high."""
    scale = min(side / width, 2 * side / height)
    return max(_FLATTEST, round(width * scale)), max(_FLATTEST, round(height * scale))


def _dim(image: Image.Image, kept: np.ndarray) -> Image.Image:
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float64) * 0.25 + 25
    mask = np.asarray(Image.fromarray(kept).resize(image.size, Image.Resampling.NEAREST))
    return Image.fromarray(np.where(mask[..., None], np.asarray(image), grey).astype(np.uint8))


def _heat(image: Image.Image, scores: np.ndarray) -> Image.Image:
    smooth = np.asarray(Image.fromarray(scores.astype(np.float32)).resize(image.size, Image.Resampling.NEAREST))
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None]
    return Image.fromarray((0.7 * _colour(smooth) + 0.3 * grey).clip(0, 255).astype(np.uint8))


def _regions(image: Image.Image, owners: np.ndarray, kept: np.ndarray) -> Image.Image:
    """Tint the patches of a kept one alike, and leave the kept patch itself as it is."""
    # Hues a golden section apart: neighbours in number, which are often neighbours in place, differ most.
    hues = (owners * 0.618034) % 1
    tints = np.stack([0.5 + 0.5 * np.cos(2 * np.pi * (hues + shift)) for shift in (0, 1 / 3, 2 / 3)], axis=-1) * 255
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float64)
    tints[owners < 0] = 255
    tint = np.asarray(Image.fromarray(tints.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST))
    mask = np.asarray(Image.fromarray(kept).resize(image.size, Image.Resampling.NEAREST))
    return Image.fromarray(np.where(mask[..., None], np.asarray(image), 0.45 * grey + 0.55 * tint).astype(np.uint8))


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Return each score's share of lower scores, in [0, 1]: a few extreme tokens do not hide the rest."""
    ordered = np.sort(scores)
    return np.searchsorted(ordered, scores) / max(1, len(scores) - 1)


def _colour(values: np.ndarray) -> np.ndarray:
    at = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(values, at, channel) for channel in _COLOURS.T], axis=-1)


def _page(panels: list[Image.Image], headings: list[str], caption: str, *, legend: bool) -> Image.Image:
    font = ImageFont.load_default(17)
    line = 26
    lines = caption.splitlines()
    top = _MARGIN + line
    # Narrow panels leave room for their headings.
    width = _MARGIN + len(panels) * (_SIDE + _MARGIN)
    bottom = top + panels[0].height
    page = Image.new("RGB", (width, bottom + _MARGIN + line * len(lines) + _MARGIN), _PAPER)
    pencil = ImageDraw.Draw(page)
    left = _MARGIN
    for panel, heading in zip(panels, headings, strict=True):
        pencil.text((left, _MARGIN - 4), heading, fill=_INK, font=font)
        page.paste(panel, (left, top))
        left += _SIDE + _MARGIN
    if legend:
        bar = _colour(np.tile(np.linspace(0, 1, 110), (12, 1))).astype(np.uint8)
        right = width - _MARGIN
        pencil.text((right - 212, _MARGIN - 4), "low", fill=_INK, font=font)
        page.paste(Image.fromarray(bar), (right - 176, _MARGIN + 1))
        pencil.text((right - 58, _MARGIN - 4), "high", fill=_INK, font=font)
    for number, text in enumerate(lines):
        pencil.text((_MARGIN, bottom + _MARGIN - 4 + number * line), text, fill=_INK, font=font)
    return page
