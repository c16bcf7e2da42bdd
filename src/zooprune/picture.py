"""Draw what was kept: the image with dropped patches dimmed, the score map, and which patch stands in for which.

Either large for one method, or small for many methods side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zooprune.data.images import picture_format
from zooprune.files import replacing
from zooprune.layout import View
from zooprune.reports import ImageReport
from zooprune.tokens import Selection

#: The width of a large panel.
_SIDE = 504
#: The least height and width of a panel.
_FLATTEST = 14
_MARGIN = 16
_INK, _GREY, _PAPER = (25, 28, 36), (95, 100, 112), (255, 255, 255)
#: Colours of the score map from low to high, dark violet to yellow: legible in greyscale and with colour blindness.
_COLOURS = np.array([(48, 18, 80), (110, 40, 130), (190, 60, 110), (240, 120, 70), (253, 231, 76)], dtype=np.float64)


#: The height of a line that says which view of an image a picture shows.
_LINE = 26
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


@dataclass(frozen=True)
class Drawn:
    """One view of a pruned image.

    Parameters
    ----------
    label : str
        "whole image" or "2 x 3 tiles" if the model cut the image into tiles, which gives two views; otherwise empty.
    kept, total : int
        Visual tokens of this view.
    pictures : dict of str to PIL.Image.Image
        "kept": the kept patches in colour. "regions", if kept tokens stand in for dropped tokens: which for which.
        "scores", if the method scores tokens: the map of their ranks.
    """

    label: str
    kept: int
    total: int
    pictures: dict[str, Image.Image]


def draw_kept(
    image: Image.Image,
    reports: Sequence[ImageReport],
    caption: str,
    *,
    scores_label: str,
    size: tuple[int, int] | None = None,
) -> Image.Image:
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
    size : tuple of int, optional
        Width and height of the image that the processor was given, if `image` is a smaller copy.

    Raises
    ------
    CannotDrawError
        If it is not known where on the image the tokens lie.
    """
    headings = {
        "kept": "kept {kept} of {total} visual tokens",
        "regions": "which kept patch stands in for which",
        "scores": f"{scores_label}, by rank",
    }
    return _page(draw_each(image, reports, size=size), headings, caption)


def draw_views(
    image: Image.Image, reports: Sequence[ImageReport], *, size: tuple[int, int] | None = None
) -> dict[str, Image.Image]:
    """Return the panels of one pruned image as separate pictures.

    Parameters
    ----------
    image, reports, size
        As for `draw_kept`.

    Returns
    -------
    dict of str to PIL.Image.Image
        "kept", "regions" and "scores", as in `Drawn`. Of an image that was cut into tiles, each picture has the whole
        image above the tiles.

    Raises
    ------
    CannotDrawError
        As `draw_kept`.
    """
    drawn = draw_each(image, reports, size=size)
    if len(drawn) == 1:
        return drawn[0].pictures
    return {
        name: stack([part for view in drawn for part in (_line(view.label, _SIDE), view.pictures[name])])
        for name in drawn[0].pictures
    }


def draw_each(
    image: Image.Image, reports: Sequence[ImageReport], *, size: tuple[int, int] | None = None
) -> list[Drawn]:
    """Return the views of one pruned image: one, or two if the model cut it into tiles.

    Parameters
    ----------
    image, reports, size
        As for `draw_kept`.

    Raises
    ------
    CannotDrawError
        As `draw_kept`.
    """
    selection, views = reports[0].selection, _views(reports, size or image.size)
    shown = image.resize(_panel(image.width, image.height), Image.Resampling.LANCZOS)
    ranks = None if selection.scores is None else _ranks(selection.scores, views)
    drawn = []
    for view in views:
        at = view.token_at(*shown.size)
        pictures = {"kept": _dim(shown, at, selection)}
        if selection.into is not None:
            pictures["regions"] = _regions(shown, at, selection)
        if ranks is not None:
            pictures["scores"] = _heat(shown, at, ranks)
        for picture in pictures.values():
            _mark_tiles(picture, view)
        # A class token is of the image, but in no view.
        own = selection.mask if len(views) == 1 else selection.mask[view.tokens[view.tokens >= 0]]
        drawn.append(Drawn(view.label, int(own.sum()), len(own), pictures))
    return drawn


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
    shown = [_kept_and_merged(small, panel, image.size) for panel in panels]
    # All methods see the same views.
    across, down = _SMALL + _GAP, shown[0].height + 58
    groups = [list(group) for _, group in groupby(zip(panels, shown, strict=True), key=lambda hung: hung[0].group)]
    rows = sum(-(-len(group) // _ACROSS) for group in groups)
    lines = caption.splitlines()
    top = _MARGIN + 34 + 22 * len(lines) + 8
    page = Image.new("RGB", (2 * _MARGIN + _ACROSS * across - _GAP, top + 38 * len(groups) + down * rows), _PAPER)
    pencil = ImageDraw.Draw(page)
    pencil.text((_MARGIN, _MARGIN - 4), title, fill=_INK, font=ImageFont.load_default(22))
    for number, line in enumerate(lines):
        pencil.text((_MARGIN, _MARGIN + 30 + 22 * number), line, fill=_GREY, font=ImageFont.load_default(15))
    for group in groups:
        pencil.text((_MARGIN, top + 2), group[0][0].group, fill=_INK, font=ImageFont.load_default(17))
        pencil.line((_MARGIN, top + 27, page.width - _MARGIN, top + 27), fill=_GREY)
        top += 38
        for number, (panel, picture) in enumerate(group):
            left, above = _MARGIN + number % _ACROSS * across, top + number // _ACROSS * down
            page.paste(picture, (left, above))
            _label(pencil, left, above + picture.height + 4, panel)
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


def _kept_and_merged(image: Image.Image, panel: Panel, size: tuple[int, int]) -> Image.Image:
    """Return the views of an image with dropped patches dimmed and a frame around merged tokens."""
    selection, views = panel.selections[0], _views(panel.images, size)
    mixtures = torch.zeros_like(selection.mask).index_fill(0, selection.index[selection.mass > 1], True)
    parts = []
    for view in views:
        at = view.token_at(*image.size)
        shown = np.asarray(_dim(image, at, selection)).copy()
        shown[_spread(mixtures, at) & _edges(at)] = _FRAME
        picture = Image.fromarray(shown)
        _mark_tiles(picture, view)
        parts += [_line(view.label, _SMALL), picture] if len(views) > 1 else [picture]
    return stack(parts)


def _edges(at: np.ndarray) -> np.ndarray:
    """Return which pixels stand beside one of another token."""
    framed = np.pad(at, 1, constant_values=-2)
    beside = framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]
    found: np.ndarray = np.any([at != other for other in beside], axis=0)
    return found


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


def _views(reports: Sequence[ImageReport], size: tuple[int, int]) -> tuple[View, ...]:
    """Return how the tokens of an image cover it, given its width and height."""
    views = reports[0].views(*size) if len(reports) == 1 else ()
    if not views:
        raise CannotDrawError(
            "this model cut the image into tiles, so a picture of the kept tokens cannot be drawn; leave out --save"
        )
    return views


def _spread(chosen: Tensor, at: np.ndarray) -> np.ndarray:
    """Return for each pixel whether its token is among the chosen ones; `at` is -1 where no token is."""
    found: np.ndarray = chosen.numpy()[at] & (at >= 0)
    return found


def _mark_tiles(picture: Image.Image, view: View) -> None:
    """Draw the borders of tiles, dark between two light lines, so that they are seen on any image."""
    pencil = ImageDraw.Draw(picture)
    across, down = view.borders(*picture.size)
    for colour, wide in ((_PAPER, 3), (_INK, 1)):
        for x in across:
            pencil.line((x, 0, x, picture.height), fill=colour, width=wide)
        for y in down:
            pencil.line((0, y, picture.width, y), fill=colour, width=wide)


def _line(text: str, width: int) -> Image.Image:
    """Return a line of text as a picture."""
    line = Image.new("RGB", (width, _LINE), _PAPER)
    ImageDraw.Draw(line).text((0, 3), text, fill=_INK, font=ImageFont.load_default(15))
    return line


def _panel(width: int, height: int, side: int = _SIDE) -> tuple[int, int]:
    """Return the size at which an image is shown: as wide as possible, and at most twice as high as wide."""
    scale = min(side / width, 2 * side / height)
    return max(_FLATTEST, round(width * scale)), max(_FLATTEST, round(height * scale))


def _grey(image: Image.Image) -> np.ndarray:
    """Return the brightness of an image, (height, width, 1)."""
    return np.asarray(image.convert("L"), dtype=np.float32)[..., None]


def _dim(image: Image.Image, at: np.ndarray, selection: Selection) -> Image.Image:
    """Return the image with all patches in grey but the kept ones, given which token each pixel shows."""
    grey = (_grey(image) * 0.25 + 25).astype(np.uint8)
    return Image.fromarray(np.where(_spread(selection.mask, at)[..., None], np.asarray(image), grey))


def _heat(image: Image.Image, at: np.ndarray, ranks: np.ndarray) -> Image.Image:
    """Return the map of ranks; the image in grey where no token is."""
    grey = _grey(image)
    # Colours are mixed for each token, of which there are far fewer than pixels.
    heat = (0.7 * _colour(ranks)).astype(np.float32)[at] + np.float32(0.3) * grey
    return Image.fromarray(np.where(at[..., None] < 0, grey, heat.clip(0, 255)).astype(np.uint8))


def _regions(image: Image.Image, at: np.ndarray, selection: Selection) -> Image.Image:
    """Give a kept patch and all patches that it stands in for one tint, and leave the kept patch unchanged."""
    assert selection.into is not None
    owners = selection.into.numpy()
    # Hues a golden section apart, so that patches with close numbers, which are often close in place, differ most.
    hues = (owners * 0.618034) % 1
    tints = np.stack([0.5 + 0.5 * np.cos(2 * np.pi * (hues + shift)) for shift in (0, 1 / 3, 2 / 3)], axis=-1) * 255
    tints[owners < 0] = 255
    # The number of no token is -1, which is the last place.
    tints = np.append(0.55 * np.floor(tints), np.full((1, 3), 0.55 * 255), axis=0).astype(np.float32)
    mixed = (np.float32(0.45) * _grey(image) + tints[at]).astype(np.uint8)
    return Image.fromarray(np.where(_spread(selection.mask, at)[..., None], np.asarray(image), mixed))


def _ranks(scores: Tensor, views: Sequence[View]) -> np.ndarray:
    """Return for each token of the views the share of lower scores, in [0, 1], so that extremes do not hide the others.

    The views share one scale.
    """
    places = torch.cat([view.tokens[view.tokens >= 0] for view in views])
    own = scores.double()[places].numpy()
    ranks = np.full(len(scores), np.nan)
    ranks[places] = np.searchsorted(np.sort(own), own) / max(1, len(own) - 1)
    return ranks


def _colour(values: np.ndarray) -> np.ndarray:
    at = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(values, at, channel) for channel in _COLOURS.T], axis=-1)


def _page(drawn: list[Drawn], headings: dict[str, str], caption: str) -> Image.Image:
    font = ImageFont.load_default(17)
    lines, names = caption.splitlines(), list(drawn[0].pictures)
    # Views of a tiled image stand below each other, with a line for their name.
    line = _LINE if len(drawn) > 1 else 0
    top = _MARGIN + _LINE
    panel = drawn[0].pictures["kept"].height
    # Narrow panels leave room for their headings.
    width = _MARGIN + len(names) * (_SIDE + _MARGIN)
    bottom = len(drawn) * (line + top + panel)
    page = Image.new("RGB", (width, bottom + _MARGIN + _LINE * len(lines) + _MARGIN), _PAPER)
    pencil = ImageDraw.Draw(page)
    for number, view in enumerate(drawn):
        above = number * (line + top + panel) + line
        pencil.text((_MARGIN, above - line + _MARGIN - 4), view.label, fill=_GREY, font=font)
        for place, name in enumerate(names):
            left = _MARGIN + place * (_SIDE + _MARGIN)
            heading = headings[name].format(kept=view.kept, total=view.total)
            pencil.text((left, above + _MARGIN - 4), heading, fill=_INK, font=font)
            page.paste(view.pictures[name], (left, above + top))
    if "scores" in names:
        bar = _colour(np.tile(np.linspace(0, 1, 110), (12, 1))).astype(np.uint8)
        right = width - _MARGIN
        pencil.text((right - 212, line + _MARGIN - 4), "low", fill=_INK, font=font)
        page.paste(Image.fromarray(bar), (right - 176, line + _MARGIN + 1))
        pencil.text((right - 58, line + _MARGIN - 4), "high", fill=_INK, font=font)
    for number, text in enumerate(lines):
        pencil.text((_MARGIN, bottom + _MARGIN - 4 + number * _LINE), text, fill=_INK, font=font)
    return page
