"""What one call did: which visual tokens stayed, of which images, and how long each stage took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from zooprune.layout import Layout, View, only_view
from zooprune.profiling import Timings
from zooprune.tokens import Selection
from zooprune.visuals import Modality


@dataclass(frozen=True)
class ImageReport:
    """What became of one image or video (or of all images of a prompt, with ``scope="prompt"``).

    Parameters
    ----------
    row : int
        The row of the batch it belongs to.
    selection : Selection
        On the CPU.
    positions : Tensor of int64, (N, 4)
        Frame, tile, row and column of every token, on the CPU.
    modality : {"image", "video"}
    separators : tuple of int
        How many separators were kept, and how many there were.
    read : tuple of int
        How many visual tokens each layer of the language model read, separators included; empty where nothing was
        pruned inside it, so that all layers read as many.
    survivors : tuple of (int, Tensor)
        From which layer on which of the image's tokens were there, without separators; empty likewise.
    layout : Layout, optional
        How the tiles of an image lie on it, where that is known and not told by the positions.
    """

    row: int
    selection: Selection
    positions: Tensor
    modality: Modality = "image"
    separators: tuple[int, int] = (0, 0)
    read: tuple[int, ...] = ()
    survivors: tuple[tuple[int, Tensor], ...] = ()
    layout: Layout | None = None

    @property
    def kept(self) -> int:
        """Visual tokens that reached the language model, separators included."""
        return len(self.selection) + self.separators[0]

    @property
    def total(self) -> int:
        """Tokens there were, separators included."""
        return self.selection.total + self.separators[1]

    @property
    def average(self) -> float:
        """Visual tokens that a layer of the language model read, on average, separators included."""
        return sum(self.read) / len(self.read) if self.read else self.kept

    def views(self, width: int, height: int) -> tuple[View, ...]:
        """Return how the tokens cover the image: twice if it is cut into tiles, not at all if their places are unknown.

        Parameters
        ----------
        width, height : int
            Of the image as the processor was given it.
        """
        if self.layout is not None:
            return self.layout.views(self.positions, width, height)
        view = only_view(self.positions)
        return () if view is None else (view,)


def lengths(images: Sequence[ImageReport], prompt: int) -> int | tuple[int, ...]:
    """Return how many tokens the layers of the language model read, layer by layer where they read different numbers.

    Parameters
    ----------
    images : sequence of ImageReport
        Of one prompt.
    prompt : int
        Its length when it enters the language model.
    """
    if not any(image.read for image in images):
        return prompt
    text = prompt - sum(image.kept for image in images)
    return tuple(text + sum(each) for each in zip(*(image.read for image in images), strict=True))


@dataclass(frozen=True)
class Report:
    """What one call did.

    Parameters
    ----------
    images : tuple of ImageReport
    prompt_length, pruned_length : int
        Width of the batch before and after, in tokens.
    """

    images: tuple[ImageReport, ...]
    prompt_length: int
    pruned_length: int
    _timings: Timings = field(default_factory=Timings, repr=False)

    @property
    def kept(self) -> int:
        """Visual tokens that reached the language model, separators included, over the batch."""
        return sum(image.kept for image in self.images)

    @property
    def average(self) -> float:
        """Visual tokens that a layer of the language model read, on average, separators included, over the batch."""
        return sum(image.average for image in self.images)

    @property
    def total(self) -> int:
        """Visual tokens there were, separators included, over the batch."""
        return sum(image.total for image in self.images)

    def in_row(self, row: int) -> tuple[int, int]:
        """Return the visual tokens of one row of the batch: those kept, and all, separators included."""
        images = [image for image in self.images if image.row == row]
        return sum(image.kept for image in images), sum(image.total for image in images)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per stage: encode, score, select, assign, and for `generate` prefill and decode."""
        return self._timings.seconds()

    @property
    def notes(self) -> dict[str, Any]:
        """What the method says about how it worked.

        ZOO-Prune in closed form gives `closed_form`, how it was worked out, and `rank_correlation`, how well that ranks
        random tokens compared with the whole.
        """
        return dict(self._timings.notes)
