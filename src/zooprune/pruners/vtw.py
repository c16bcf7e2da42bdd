"""VTW: deep layers do without visual tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from zooprune.pruners.inside import InsidePruner, check_layers
from zooprune.tokens import Budget

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer


@dataclass(frozen=True)
class VisualTokensWithdrawal(InsidePruner):
    """Drop all visual tokens in front of one layer.

    With a budget, the layer is the one with which the average over layers comes closest to it: within half of an
    image's tokens, divided by the number of layers. The paper finds the layer on a small data set. It does not mention
    positions; here the text keeps its own.

    Source: Lin et al., "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
    arXiv 2405.05803.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves `layer`.
    layer : int or float
        In front of which layer, counted from 0, or at which share of the depth, where `keep` is None: layer 16 of 32.

    Notes
    -----
        layer = ⌊k · depth / N + 1/2⌋, at least 1

        layer: number of the layer in front of which all visual tokens are dropped
        k: the budget, which is the visual tokens that a layer reads on average
        depth: number of layers
        N: visual tokens that entered the language model
    """

    name: ClassVar[str] = "vtw"
    source: ClassVar[str] = "arXiv 2405.05803"
    query_aware: ClassVar[bool] = False
    exact: ClassVar[bool] = False

    layer: int | float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers([self.layer])

    def places(self) -> tuple[int | float, ...]:
        """Return the one layer."""
        return (self.layer,)

    def shares(self, share: float | None, stages: int) -> tuple[float, ...]:
        """Return that nothing is left."""
        return (0.0,)

    def schedule(self, visual: int, total: int, depth: int, *, last: bool = True) -> tuple[tuple[int, int | None], ...]:
        """Return the layer, by the budget if there is one."""
        if self.keep is None:
            return super().schedule(visual, total, depth)
        target = Budget(self.keep).count(total)
        layer = max(1, math.floor(target * depth / visual + 0.5))
        return ((layer, 0),) if layer < depth else ()

    def score_at(self, layer: Layer) -> Tensor:
        """Return that all are worth the same."""
        return layer.here.hidden.new_zeros(len(layer.visual)).float()
