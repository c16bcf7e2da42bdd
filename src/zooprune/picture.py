"""Show what was kept: the image with dropped patches dimmed, the map of scores, and who stands in for whom."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zooprune.reports import ImageReport
from zooprune.tokens import NEWLINE

_SIDE = 504
#: Tall images get no taller than this, and flat ones no flatter.
_TALLEST, _FLATTEST = 2 * _SIDE, 14
_MARGIN = 16
_INK, _PAPER = (25, 28, 36), (255, 255, 255)
#: Anchors of a map from low to high, dark violet to yellow, that greyscale and colour-blind readers can follow.
_COLOURS = np.array([(48, 18, 80), (110, 40, 130), (190, 60, 110), (240, 120, 70), (253, 231, 76)], dtype=np.float64)


class CannotDrawError(ValueError):
    """The tokens of an image have no place in a picture of it."""


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
    report = reports[0]
    shows = report.positions[:, 2] != NEWLINE
    tiles = len(report.positions[shows, :2].unique(dim=0))
    if len(reports) > 1 or tiles != 1:
        raise CannotDrawError(
            "a picture can be drawn of an image that is one tile, and this model cut it up otherwise; leave out --save"
        )
    rows, columns = (int(report.positions[:, axis].max()) + 1 for axis in (2, 3))
    place = (report.positions[:, 2] * columns + report.positions[:, 3])[shows].numpy()
    kept = np.zeros(rows * columns, dtype=bool)
    kept[place] = report.selection.mask[shows].numpy()
    shown = image.resize(_panel(image.width, image.height), Image.Resampling.LANCZOS)
    panels = [_dim(shown, kept.reshape(rows, columns))]
    headings = [f"kept {len(report.selection)} of {report.selection.total} visual tokens"]
    if report.selection.into is not None:
        owners = np.full(rows * columns, -1)
        owners[place] = report.selection.into[shows].numpy()
        panels.append(_regions(shown, owners.reshape(rows, columns), kept.reshape(rows, columns)))
        headings.append("which kept patch stands in for which")
    if report.selection.scores is not None:
        scores = np.zeros(rows * columns)
        scores[place] = _ranks(report.selection.scores[shows].double().numpy())
        panels.append(_heat(shown, scores.reshape(rows, columns)))
        headings.append(f"{scores_label}, by rank")
    return _page(panels, headings, caption, legend=report.selection.scores is not None)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG; an older file stays until the new one is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        picture.save(temporary, "PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _panel(width: int, height: int) -> tuple[int, int]:
    """Return the size at which an image is shown: as wide as there is room, unless it would become too tall."""
    scale = min(_SIDE / width, _TALLEST / height)
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
