"""What a method that prunes inside the language model is: it scores the visual tokens that a decoder layer would read.

Such a method has one stage or several, each in front of a layer. It never sees hooks, masks or caches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from zooprune.policy import PositionPolicy
from zooprune.pruners.base import Pruner
from zooprune.tokens import Budget, Selection, VisualTokens

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer, Passage


@dataclass(frozen=True)
class Mixed:
    """What stays of the visual tokens of one image, where some of it becomes mixtures.

    Parameters
    ----------
    index : Tensor of int64, (k,)
        The tokens that stay, in any order.
    anchors : Tensor of int64, (m,)
        Those among them that become mixtures. A mixture stands where its anchor stood.
    rows : Tensor, (m, d)
        What the layer reads there.
    """

    index: Tensor
    anchors: Tensor
    rows: Tensor


@dataclass(frozen=True)
class InsidePruner(Pruner):
    """Base of the methods that prune inside the language model.

    A method writes `places`, `shares` and `score_at`, and `choose_at` as well when the kept tokens are not simply the
    highest scoring ones. If it has to know what layers do on the way, it writes `watches` and `measure`.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a decoder layer reads on average over all layers, or a share of the image's tokens.
        None is the paper's own schedule.
    """

    where = "inside the language model"
    query_aware: ClassVar[bool] = True
    scores_label: ClassVar[str] = "attention"
    #: How much of a budget the layers in front of the first stage may read before they become fewer.
    uncut_share: ClassVar[float] = 0.75
    #: What the paper does with the positions of the tokens that stay. Where it depends on options, a method defines
    #: `numbers` instead.
    numbering: ClassVar[PositionPolicy] = "original"

    # Elsewhere a budget is always given; here the paper's schedule is the default.
    keep: int | float | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.keep is not None:
            Budget(self.keep)

    def places(self) -> tuple[int | float, ...]:
        """Return in front of which layers it prunes, as numbers or as shares of the depth, ascending."""
        raise NotImplementedError(f"{type(self).__name__} does not define places()")

    def shares(self, share: float | None, stages: int) -> tuple[float, ...]:
        """Return what each stage leaves of the visual tokens that entered the language model.

        Parameters
        ----------
        share : float or None
            From 0 for nothing to 1 for all; most methods take it for what the first stage leaves. None for what the
            paper says.
        stages : int
        """
        raise NotImplementedError(f"{type(self).__name__} does not define shares()")

    def schedule(self, visual: int, total: int, depth: int, *, last: bool = True) -> tuple[tuple[int, int | None], ...]:
        """Return in front of which layers how many visual tokens of an image stay; None where its own rule decides.

        With a budget, the shares are found with which it is met. Layers given as shares of the depth come earlier where
        those in front of the first stage would read more than `uncut_share` of the budget.

        Parameters
        ----------
        visual : int
            Visual tokens of the image that enter the language model.
        total : int
            Visual tokens that the image has without any pruning, of which a float `keep` is a share.
        depth : int
            Layers of the decoder.
        last : bool
            Whether no other image of the prompt follows.

        Raises
        ------
        ValueError
            If the decoder has no such layer, or the layers in front of the first stage read more than the budget.
        """
        layers = layer_numbers(self.places(), depth)
        if self.keep is None:
            left = self.shares(None, len(layers))
            return tuple((layer, math.floor(visual * share)) for layer, share in zip(layers, left, strict=True))
        target = Budget(self.keep).count(total)
        if target >= visual:
            return ()
        if isinstance(self.places()[0], float):
            latest = max(1, math.floor(self.uncut_share * target * depth / visual))
            layers = (
                tuple(dict.fromkeys(max(1, layer * latest // layers[0]) for layer in layers))
                if latest < layers[0]
                else layers
            )
        if visual * layers[0] > target * depth:
            raise ValueError(
                f"{self.name} prunes first in front of layer {layers[0]} of {depth}, so that a layer reads at least "
                f"{visual * layers[0] / depth:.1f} visual tokens of this image on average, and keep={self.keep} asks "
                f"for {target}; prune at an earlier layer, or before the language model too"
            )
        lengths = [end - start for start, end in zip(layers, [*layers[1:], depth], strict=True)]

        def average(share: float) -> float:
            left = self.shares(share, len(layers))
            return visual * (layers[0] + sum(a * b for a, b in zip(lengths, left, strict=True))) / depth

        low, high = 0.0, 1.0
        while high - low > 1e-9:
            middle = (low + high) / 2
            low, high = (middle, high) if average(middle) < target else (low, middle)
        left = self.shares(high, len(layers))
        return tuple((layer, math.floor(visual * share + 0.5)) for layer, share in zip(layers, left, strict=True))

    def numbers(self) -> PositionPolicy:
        """Return what the paper does with the positions of the tokens that stay."""
        return self.numbering

    def watches(self) -> bool:
        """Return whether it measures the layers from the one in front of its first stage to its last stage."""
        return False

    def measure(self, attention: Passage, feed_forward: Passage) -> Tensor:
        """Return a number for each row of one prompt, given what the two modules of a layer did: float32, (L,)."""
        raise NotImplementedError(f"{type(self).__name__} does not define measure()")

    def score_at(self, layer: Layer) -> Tensor:
        """Return what each visual token of one image is worth in front of a layer: float32, (n,)."""
        raise NotImplementedError(f"{type(self).__name__} does not define score_at()")

    def choose_at(self, scores: Tensor, layer: Layer, keep: int | None) -> Tensor | Mixed:
        """Return which of these visual tokens stay, in any order. Ties go to the lowest index."""
        return torch.sort(scores, descending=True, stable=True).indices[:keep]

    def select(self, tokens: VisualTokens, keep: int) -> Selection:
        """Refuse: there are no tokens to choose among before the language model reads them."""
        raise TypeError(f"{self.name} prunes inside the language model; use prune(model, None, inside={self.name!r})")


def layer_number(layer: int | float, depth: int) -> int:
    """Return the number of a layer that is given as a number or as a share of the decoder's depth.

    Parameters
    ----------
    layer : int or float
        An int from 1 on is a number, counted from 0; a float in (0, 1) is a share, so that 0.25 is layer 8 of 32 and
        layer 7 of 28. A share never means the first layer, in front of which nothing is known.
    depth : int

    Raises
    ------
    ValueError
        If the decoder has no such layer, or it is the first.
    """
    if isinstance(layer, float):
        return min(max(1, math.floor(layer * depth + 0.5)), depth - 1)
    if layer >= depth:
        raise ValueError(
            f"layer {layer} cannot be pruned at, as the language model has {depth}; give 1 to {depth - 1}, "
            "or a share of its depth as a float"
        )
    return layer


def layer_numbers(layers: Sequence[int | float], depth: int) -> tuple[int, ...]:
    """Return the numbers of layers as `layer_number` does; those that fall together in a shallow decoder count once."""
    return tuple(dict.fromkeys(layer_number(layer, depth) for layer in layers))


def between(schedules: Sequence[Sequence[float]], share: float, stages: int) -> tuple[float, ...]:
    """Return what stages leave, between nothing, the schedules of a paper and all.

    Parameters
    ----------
    schedules : sequence of sequence of float
        What each stage leaves, for budgets from the smallest up.
    share : float
        Where in between, from 0 to 1; the schedules are at even distances.
    stages : int
        How many stages there are, in decoders that are too shallow for all.
    """
    nodes = [(0.0,) * stages, *schedules, (1.0,) * stages]
    place = share * (len(nodes) - 1)
    low = min(int(place), len(nodes) - 2)
    return tuple(a + (b - a) * (place - low) for a, b in zip(nodes[low][:stages], nodes[low + 1][:stages], strict=True))


def check_layers(layers: Sequence[int | float]) -> None:
    """Raise an error unless these can be layers in front of which a decoder is pruned, in ascending order."""
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, (int, float)):
            raise TypeError(f"a layer is an int (its number) or a float (a share of the depth), not {layer!r}")
        if (isinstance(layer, int) and layer < 1) or (isinstance(layer, float) and not 0 < layer < 1):
            raise ValueError(f"layer {layer} is neither a number from 1 on nor a share between 0 and 1")
    kinds = {type(layer) for layer in layers}
    if not layers or len(kinds) > 1 or any(low >= high for low, high in pairwise(layers)):
        raise ValueError(f"layers={layers} must be ascending, and all numbers or all shares")


def check_share(name: str, share: float) -> None:
    """Raise a ValueError unless an option is a share in (0, 1]."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ValueError(f"{name}={share!r} is not a share in (0, 1]")
