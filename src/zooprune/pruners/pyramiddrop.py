"""PyramidDrop: every quarter of the language model reads half as many visual tokens as the one before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from zooprune.policy import PositionPolicy
from zooprune.pruners.inside import InsidePruner, check_layers, check_share

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer


@dataclass(frozen=True)
class PyramidDrop(InsidePruner):
    """Keep the visual tokens that the last token of the prompt attends to most, fewer from stage to stage.

    The attention is that of the layer in front of which a stage prunes, averaged over its heads. Tokens that stay are
    numbered anew.

    Source: Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy
    Reduction", arXiv 2410.17247, and its code. With a budget, one ratio is found with which the average is met.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves `ratio`.
    layers : tuple of int or float
        In front of which layers, counted from 0, or at which shares of the depth: layers 8, 16 and 24 of 32 in the
        paper.
    ratio : float
        The share that each stage keeps of the visual tokens that reach it, where `keep` is None.

    Notes
    -----
        score_i = mean_h A_h(last, i)
        stage s keeps N · ratio^s tokens

        A_h(last, i): attention of the prompt's last token to visual token i in head h
                      of the layer at hand
        N: visual tokens that entered the language model
    """

    name: ClassVar[str] = "pyramiddrop"
    source: ClassVar[str] = "arXiv 2410.17247"
    numbering: ClassVar[PositionPolicy] = "contiguous"

    layers: tuple[int | float, ...] = (0.25, 0.5, 0.75)
    ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self.layers)
        check_share("ratio", self.ratio)

    def places(self) -> tuple[int | float, ...]:
        """Return the layers."""
        return self.layers

    def shares(self, share: float | None, stages: int) -> tuple[float, ...]:
        """Return the powers of the ratio."""
        ratio = self.ratio if share is None else share
        return tuple(ratio**stage for stage in range(1, stages + 1))

    def score_at(self, layer: Layer) -> Tensor:
        """Return the attention of the last token in the layer at hand."""
        return layer.here.heads.attention(layer.last)[layer.visual]
