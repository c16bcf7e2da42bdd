"""FastV: the visual tokens that the last token of the prompt attends to least are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from zooprune.pruners.inside import InsidePruner, check_layers, check_share

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer


@dataclass(frozen=True)
class FastV(InsidePruner):
    """Keep the visual tokens that the last token of the prompt attends to most in an early layer.

    The attention is that of the layer before, averaged over its heads. From this layer on, all other visual tokens are
    dropped. Kept tokens keep their positions.

    Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large
    Vision-Language Models", arXiv 2403.06764, and its code, which reads the attention of the last token only, while the
    paper describes the mean over all tokens. Only one row of the attention is worked out here, so that fast kernels
    stay in use.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves `ratio`.
    layer : int or float
        In front of which layer, counted from 0, or at which share of the depth: layer 2 of 32 in the paper.
    ratio : float
        The share of the visual tokens that stays, where `keep` is None.

    Notes
    -----
        score_i = mean_h A_h(last, i)

        A_h(last, i): attention of the prompt's last token to visual token i in head h
                      of the layer before
    """

    name: ClassVar[str] = "fastv"
    source: ClassVar[str] = "arXiv 2403.06764"

    layer: int | float = 0.0625
    ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers([self.layer])
        check_share("ratio", self.ratio)

    def places(self) -> tuple[int | float, ...]:
        """Return the one layer."""
        return (self.layer,)

    def shares(self, share: float | None, stages: int) -> tuple[float, ...]:
        """Return what is left from the layer on."""
        return (self.ratio if share is None else share,)

    def score_at(self, layer: Layer) -> Tensor:
        """Return the attention of the last token in the layer before."""
        return layer.before.heads.attention(layer.last)[layer.visual]
