"""What sits on a method that prunes inside the language model and corrects its scores."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from zooprune.policy import PositionPolicy
from zooprune.projectors import Sensitivity
from zooprune.pruners.inside import InsidePruner, Mixed
from zooprune.pruners.registry import get_pruner

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer, Passage


@dataclass(frozen=True)
class AddOn(InsidePruner):
    """Base of what corrects the scores of another method; an add-on writes `corrected`.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves the budget
        to the method below.
    of : InsidePruner or str
        The method below, or its name.
    """

    of: InsidePruner | str = "fastv"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.below, InsidePruner):
            raise TypeError(
                f"{self.name} sits on a method that prunes inside the language model, not on {self.of!r}; "
                'give of="fastv", for example'
            )

    @cached_property
    def below(self) -> InsidePruner:
        """The method below, with the budget."""
        found = get_pruner(self.of) if isinstance(self.of, str) else self.of
        if self.keep is not None and isinstance(found, InsidePruner):
            found = dataclasses.replace(found, keep=self.keep)
        return found  # type: ignore[return-value]

    def corrected(self, scores: Tensor, layer: Layer) -> Tensor:
        """Return the corrected scores: float32, (n,)."""
        raise NotImplementedError(f"{type(self).__name__} does not define corrected()")

    def score_at(self, layer: Layer) -> Tensor:
        """Return the scores of the method below, corrected."""
        return self.corrected(self.below.score_at(layer), layer)

    def choose_at(self, scores: Tensor, layer: Layer, keep: int | None) -> Tensor | Mixed:
        """Choose as the method below does."""
        return self.below.choose_at(scores, layer, keep)

    def places(self) -> tuple[int | float, ...]:
        """Return the layers of the method below."""
        return self.below.places()

    def schedule(self, visual: int, total: int, depth: int, *, last: bool = True) -> tuple[tuple[int, int | None], ...]:
        """Return the schedule of the method below."""
        return self.below.schedule(visual, total, depth, last=last)

    def numbers(self) -> PositionPolicy:
        """Return what the method below does."""
        return self.below.numbers()

    def watches(self) -> bool:
        """Return whether the method below does."""
        return self.below.watches()

    def measure(self, attention: Passage, feed_forward: Passage) -> Tensor:
        """Measure what the method below measures."""
        return self.below.measure(attention, feed_forward)

    def is_exact(self) -> bool:
        """Return whether the method below is."""
        return self.below.is_exact()

    def draws(self, sensitivity: Sensitivity) -> bool:
        """Return whether the method below draws."""
        return self.below.draws(sensitivity)
