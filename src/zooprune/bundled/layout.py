"""What a scene consists of: plain data from which `zooprune.bundled.scenes` makes the picture.

Nothing here draws lots: `training/layouts.py` does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

Box = tuple[int, int, int, int]

#: Width and height of a full scene in pixels.
SIDE = 336


@dataclass(frozen=True)
class Background:
    """A square part of a photograph, its colours scaled and shifted."""

    photograph: str
    crop: Box
    mirrored: bool
    gain: tuple[float, float, float]
    shift: float


@dataclass(frozen=True)
class Thing:
    """Something to place in a scene; `box` is left, top, right, bottom in pixels, and not every field applies.

    Parameters
    ----------
    name : str
        An emoji's name, "sign", "digit" or "label".
    box : tuple of int
    colour : str, optional
        Of coloured emoji and of signs.
    text : str, optional
        What a sign or label says, or which digit was written.
    glyphs : tuple of boxes
        Of a sign's or label's characters in reading order.
    size, angle, mirrored, brightness
        How an emoji or digit is drawn: pixels, degrees, whether left and right are swapped, and a factor. `size` is
        also that of a sign's or label's letters.
    font, drawing, ink : int
        Which font, which handwritten digit, and how blue the ink of the latter is (0 to 255).
    """

    name: str
    box: Box
    colour: str | None = None
    text: str | None = None
    glyphs: tuple[Box, ...] = ()
    size: int = 0
    angle: float = 0.0
    mirrored: bool = False
    brightness: float = 1.0
    font: int = 0
    drawing: int = 0
    ink: int = 0

    @property
    def centre(self) -> tuple[float, float]:
        """Column and row of the middle, in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Layout:
    """A scene in words and numbers.

    One smaller than `SIDE` is a window of a full scene; `origin` is where its top left corner lies there.
    """

    side: int
    background: Background
    things: tuple[Thing, ...]
    origin: tuple[int, int] = (0, 0)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers, without the fields that have their default value."""
        empty = vars(Thing("", (0, 0, 0, 0)))
        things = [{key: value for key, value in asdict(thing).items() if value != empty[key]} for thing in self.things]
        return {"side": self.side, "background": asdict(self.background), "things": things, "origin": self.origin}

    @staticmethod
    def from_json(plain: dict[str, Any]) -> Layout:
        """Return what `to_json` was called on."""
        tupled = _tuples(plain)
        things = tuple(Thing(**thing) for thing in tupled["things"])
        return Layout(tupled["side"], Background(**tupled["background"]), things, tupled["origin"])


def _tuples(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: _tuples(value) for key, value in plain.items()}
    return tuple(map(_tuples, plain)) if isinstance(plain, list) else plain
