"""Draw what was kept: the image with dropped patches dimmed, the score map, and which patch stands in for which.

Either large for one method, or small for many methods side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zooprune.data.images import picture_format
from zooprune.files import replacing
from zooprune.reports import ImageReport
from zooprune.tokens import NEWLINE, Selection

#: The width of a large panel.
_SIDE = 504
#: The least height and width of a panel.
_FLATTEST = 14
_MARGIN = 16
_INK, _GREY, _PAPER = (25, 28, 36), (95, 100, 112), (255, 255, 255)
#: Colours of the score map from low to high, dark violet to yellow: legible in greyscale and with colour blindness.
_COLOURS = np.array([(48, 18, 80), (110, 40, 130), (190, 60, 110), (240, 120, 70), (253, 231, 76)], dtype=np.float64)


#: Of a gallery: the width of a panel, the number of panels in a row, and the space between them.
_SMALL, _ACROSS, _GAP = 192, 5, 14
#: A tick and a cross, which differ in more than their colour, as strokes in a square of 14.
_RIGHT, _WRONG = (((1, 8), (5, 12), (13, 2)),), (((2, 2), (12, 12)), ((2, 12), (12, 2)))
_GREEN, _RED, _FRAME = (0, 120, 70), (190, 30, 45), (255, 0, 220)


class CannotDrawError(ValueError):
    """The tokens of an image cannot be placed in a picture of it."""


@dataclass(frozen=True)
class Panel:
    """What one method keeps of an image, and what the model answers.

    Parameters
    ----------
    name, group : str
        The method's name and its group. Panels of a group stand together under a heading.
    answer : str
    right : bool
        Whether the answer is right.
    images : tuple of ImageReport
        The session's reports of the image.
    """

    name: str
    group: str
    answer: str
    right: bool
    images: tuple[ImageReport, ...]

    @property
    def selections(self) -> list[Selection]:
        """The kept tokens, one entry per report."""
        return [image.selection for image in self.images]


def draw_kept(image: Image.Image, reports: Sequence[ImageReport], caption: str, *, scores_label: str) -> Image.Image:
    """Return the picture of one pruned image.

    Parameters
    ----------
    image : PIL.Image.Image
        As the model saw it, RGB.
    reports : sequence of ImageReport
        The session's reports of the image.
    caption : str
        Text below the pictures; line breaks are kept.
    scores_label : str
        The meaning of the scores, for the legend.

    Raises
    ------
    CannotDrawError
        If the model cut the image into tiles, or does not report the places of tokens.
    """
    views, selection = draw_views(image, reports), reports[0].selection
    headings = {
        "kept": f"kept {len(selection)} of {selection.total} visual tokens",
        "regions": "which kept patch stands in for which",
        "scores": f"{scores_label}, by rank",
    }
    return _page(list(views.values()), [headings[name] for name in views], caption, legend="scores" in views)


def draw_views(image: Image.Image, reports: Sequence[ImageReport]) -> dict[str, Image.Image]:
    """Return the panels of one pruned image as separate pictures.

    Parameters
    ----------
    image : PIL.Image.Image
        As the model saw it, RGB.
    reports : sequence of ImageReport
        The session's reports of the image.

    Returns
    -------
    dict of str to PIL.Image.Image
        "kept": the kept patches in colour. "regions", if kept tokens stand in for dropped tokens: which for which.
        "scores", if the method scores tokens: the map of their ranks.

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
    """Return one picture that shows what every method keeps of an image.

    Parameters
    ----------
    image : PIL.Image.Image
        As the model saw it, RGB.
    panels : sequence of Panel
        Panels of a group stand next to each other.
    title, caption : str
        Text above the panels; line breaks are kept.

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
    """Write a picture in the format of its name; an older file stays until the new one is complete.

    Raises
    ------
    ValueError
        If the name does not end like one of `zooprune.data.images.WRITTEN`.
    """
    form = picture_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        if form == "PNG":
            picture.save(temporary, form)
        else:
            picture.convert("RGB").save(temporary, form, quality=90)


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures below each other as one."""
    page = Image.new("RGB", (max(each.width for each in pictures), sum(each.height for each in pictures)), _PAPER)
    top = 0
    for each in pictures:
        page.paste(each, (0, top))
        top += each.height
    return page


def _kept_and_merged(image: Image.Image, panel: Panel) -> Image.Image:
    """Return the image with dropped patches dimmed and a frame around merged tokens."""
    raster, selection = _Raster(panel.images), panel.selections[0]
    shown = _dim(image, raster.laid_out(selection.mask, False))
    pencil = ImageDraw.Draw(shown)
    mixtures = torch.zeros_like(selection.mask).index_fill(0, selection.index[selection.mass > 1], True)
    high, wide = image.height / raster.rows, image.width / raster.columns
    for row, column in np.argwhere(raster.laid_out(mixtures, False)):
        left, top = round(column * wide), round(row * high)
        # Patches of a very flat image are smaller than a pixel.
        right, bottom = max(left, round((column + 1) * wide) - 1), max(top, round((row + 1) * high) - 1)
        pencil.rectangle((left, top, right, bottom), outline=_FRAME)
    return shown


def _label(pencil: ImageDraw.ImageDraw, left: int, top: int, panel: Panel) -> None:
    """Write a method's name and its answer, with a tick or a cross."""
    selection = panel.selections[0]
    name = f"{panel.name}, all {selection.total} tokens" if selection.keeps_all else panel.name
    pencil.text((left, top), _shortened(name, 17, _SMALL), fill=_INK, font=ImageFont.load_default(17))
    colour = _GREEN if panel.right else _RED
    for stroke in _RIGHT if panel.right else _WRONG:
        pencil.line([(left + x, top + 26 + y) for x, y in stroke], fill=colour, width=2)
    answer = _shortened(" ".join(panel.answer.split()), 16, _SMALL - 20)
    pencil.text((left + 20, top + 23), answer, fill=colour, font=ImageFont.load_default(16))


def _shortened(text: str, size: int, width: int) -> str:
    """Return the beginning of a line that fits."""
    font = ImageFont.load_default(size)
    if font.getlength(text) <= width:
        return text
    fits = next(count for count in range(len(text), -1, -1) if font.getlength(text[:count] + "...") <= width)
    return text[:fits].rstrip() + "..."


class _Raster:
    """The places of the tokens of an image that is one tile.

    Raises
    ------
    CannotDrawError
        If the model cut the image into tiles, or does not report the places of tokens.
    """

    def __init__(self, reports: Sequence[ImageReport]) -> None:
        positions = reports[0].positions
        self._shows = positions[:, 2] != NEWLINE
        if len(reports) > 1 or len(positions[self._shows, :2].unique(dim=0)) != 1:
            raise CannotDrawError(
                "this model cut the image into tiles, so a picture of the kept tokens cannot be drawn; leave out --save"
            )
        self.rows, self.columns = (int(positions[:, axis].max()) + 1 for axis in (2, 3))
        self._place = (positions[:, 2] * self.columns + positions[:, 3])[self._shows].numpy()

    def laid_out(self, values: Tensor, empty: object, change: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Any:
        """Return a value per token as (rows, columns), changed by a function; `empty` where no token is."""
        given = change(values[self._shows].numpy())
        grid = np.full(self.rows * self.columns, empty, dtype=given.dtype)
        grid[self._place] = given
        return grid.reshape(self.rows, self.columns)


def _panel(width: int, height: int, side: int = _SIDE) -> tuple[int, int]:
    """Return the size at which an image is shown: as wide as possible, and at most twice as high as wide."""
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
    """Give a kept patch and all patches that it stands in for one tint, and leave the kept patch unchanged."""
    # Hues a golden section apart, so that patches with close numbers, which are often close in place, differ most.
    hues = (owners * 0.618034) % 1
    tints = np.stack([0.5 + 0.5 * np.cos(2 * np.pi * (hues + shift)) for shift in (0, 1 / 3, 2 / 3)], axis=-1) * 255
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float64)
    tints[owners < 0] = 255
    tint = np.asarray(Image.fromarray(tints.astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST))
    mask = np.asarray(Image.fromarray(kept).resize(image.size, Image.Resampling.NEAREST))
    return Image.fromarray(np.where(mask[..., None], np.asarray(image), 0.45 * grey + 0.55 * tint).astype(np.uint8))


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Return for each score the share of lower scores, in [0, 1], so that extreme scores do not hide the others."""
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
