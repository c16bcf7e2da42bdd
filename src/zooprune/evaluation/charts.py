"""Line charts as SVG inside HTML: they need no script, scale with the page and stay sharp in print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle, pairwise

#: Of the drawing. It is shown at up to twice this width, and its text stays legible at three quarters of it.
_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 46
#: Width and height of a label. Labels that would overlap are left out.
_LABEL_ROOM, _LINE = 28, 14
#: Okabe and Ito's colours, which colour-blind readers can tell apart, and shapes, which do not need any.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_SHAPES = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0Z", "M-4-4h8v8h-8Z", "M0-5 5 4h-10Z", "M0-5 5 0 0 5-5 0Z", "M-5-4h10L0 5Z")
_GREY = "#6b7080"


@dataclass(frozen=True)
class Point:
    """A point of a series.

    Parameters
    ----------
    x, y : float
    told : str
        What the pointer shows.
    interval : tuple of float, optional
        Both ends of the error bar.
    label : str
        Written beside the point.
    """

    x: float
    y: float
    told: str
    interval: Sequence[float] | None = None
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one name.

    Parameters
    ----------
    name : str
    points : sequence of Point
    joined : bool
        Whether a line joins them.
    """

    name: str
    points: Sequence[Point]
    joined: bool = True


@dataclass(frozen=True)
class Guide:
    """A dashed grey line behind the series, with its name for the legend.

    Parameters
    ----------
    name : str
    points : sequence of (x, y)
    """

    name: str
    points: Sequence[tuple[float, float]]


def chart(
    title: str,
    x_title: str,
    y_title: str,
    series: Sequence[Series],
    guide: Guide,
    *,
    ticks: Mapping[float, str] | None = None,
) -> str:
    """Return a chart with its legend.

    Parameters
    ----------
    title, x_title, y_title : str
    series : sequence of Series
        At least one of them with a point.
    guide : Guide
        An x that is infinite lies at the edge of the chart.
    ticks : mapping of float to str, optional
        Ticks of x with their labels; the scale of x is then logarithmic.

    Returns
    -------
    str
        HTML.
    """
    points = [point for one in series for point in one.points]
    across = _Axis([point.x for point in points], (_LEFT, _WIDTH - _RIGHT), log=ticks is not None)
    values = [value for point in points for value in (point.y, *(point.interval or ()))]
    down = _Axis([*values, *(y for _, y in guide.points)], (_HEIGHT - _BOTTOM, _TOP))
    drawn = [_axes(across, down, x_title, y_title, ticks or across.round_ticks())]
    path = " ".join(f"{across.at(x):.1f},{down.at(y):.1f}" for x, y in guide.points)
    drawn.append(f'<polyline points="{path}" fill="none" stroke="{_GREY}" stroke-width="1.5" stroke-dasharray="4 3"/>')
    looks = list(zip(series, cycle(_COLOURS), cycle(_SHAPES)))
    labels: list[tuple[float, float]] = []
    drawn += [_series(one, across, down, colour, shape, labels) for one, colour, shape in looks]
    legend = "".join(
        f'<li><svg viewBox="-8 -7 16 14" width="16" height="14" aria-hidden="true"><path d="{shape}" fill="{colour}"/>'
        f"</svg>{escape(one.name)}</li>"
        for one, colour, shape in looks
    )
    legend += (
        '<li><svg viewBox="-12 -7 24 14" width="24" height="14" aria-hidden="true"><path d="M-12 0h24" '
        f'stroke="{_GREY}" stroke-width="1.5" stroke-dasharray="4 3"/></svg>{escape(guide.name)}</li>'
    )
    return (
        f"<figure class=chart><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'
        f"<ul class=legend>{legend}</ul></figure>"
    )


class _Axis:
    """A scale from values to places in the drawing, with some room at both ends."""

    def __init__(self, values: Sequence[float], ends: tuple[int, int], *, log: bool = False) -> None:
        self._log, self._ends = log, ends
        scaled = [math.log(value) if log else value for value in values if math.isfinite(value)]
        room = 0.06 * (max(scaled) - min(scaled)) or abs(max(scaled)) * 0.01 or 1.0
        self._low, self._high = min(scaled) - room, max(scaled) + room

    def at(self, value: float) -> float:
        if math.isinf(value):
            return self._ends[value > 0]
        scaled = math.log(value) if self._log else value
        return self._ends[0] + (scaled - self._low) / (self._high - self._low) * (self._ends[1] - self._ends[0])

    def round_ticks(self) -> dict[float, str]:
        """Return three to seven round numbers of a linear scale, with their labels."""
        size = 10 ** math.floor(math.log10(self._high - self._low))
        step = next(step for step in (size / 5, size / 2, size, 2 * size) if (self._high - self._low) / step <= 7)
        numbers = range(math.ceil(self._low / step), math.floor(self._high / step) + 1)
        return {step * number: f"{step * number:,g}" for number in numbers}


def _axes(across: _Axis, down: _Axis, x_title: str, y_title: str, ticks: Mapping[float, str]) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    drawn = [
        f'<path d="M{_LEFT} {down.at(tick):.1f}H{right}" stroke="#e3e5ea"/>'
        f'<text x="{_LEFT - 6}" y="{down.at(tick) + 4:.1f}" text-anchor="end">{label}</text>'
        for tick, label in down.round_ticks().items()
    ]
    written = -math.inf
    for tick, label in sorted(ticks.items()):
        place = across.at(tick)
        drawn.append(f'<path d="M{place:.1f} {bottom}v5" stroke="{_GREY}"/>')
        if place - written >= _LABEL_ROOM:
            drawn.append(f'<text x="{place:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(label)}</text>')
            written = place
    drawn.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="{_GREY}"/>')
    drawn.append(f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>')
    turned = f"translate(12 {(_TOP + bottom) / 2})rotate(-90)"
    drawn.append(f'<text transform="{turned}" text-anchor="middle">{escape(y_title)}</text>')
    return "".join(drawn)


def _series(one: Series, across: _Axis, down: _Axis, colour: str, shape: str, labels: list[tuple[float, float]]) -> str:
    """Draw a series; `labels` holds the places of all labels so far, so that none is written over another."""
    drawn = []
    if one.joined:
        for start, end in pairwise(one.points):
            line = f"M{across.at(start.x):.1f} {down.at(start.y):.1f}L{across.at(end.x):.1f} {down.at(end.y):.1f}"
            drawn.append(f'<path d="{line}" stroke="{colour}" stroke-width="2"/>')
    for point in one.points:
        x, y = across.at(point.x), down.at(point.y)
        if point.interval is not None:
            low, high = (down.at(end) for end in point.interval)
            drawn.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}"/>')
        if point.label and not any(abs(x - left) < _LABEL_ROOM and abs(y - top) < _LINE for left, top in labels):
            labels.append((x, y))
            drawn.append(f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{escape(point.label)}</text>')
        drawn.append(
            f'<path d="{shape}" transform="translate({x:.1f} {y:.1f})" fill="{colour}">'
            f"<title>{escape(point.told)}</title></path>"
        )
    return "".join(drawn)
