"""VisionDrop: image tokens rank each other, in front of the language model and inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.averaging import averages
from zooprune.policy import PositionPolicy
from zooprune.precision import exact_float32
from zooprune.pruners.inside import InsidePruner, Mixed, between, check_layers
from zooprune.pruners.visionzip import VisionZip

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer


@dataclass(frozen=True)
class VisionDrop(VisionZip):
    """Keep the tokens that receive most attention in the vision tower, and merge the others into a few more.

    This is the part of VisionDrop in front of the language model: dominant and contextual tokens as in VisionZip, with
    a smaller share of contextual tokens. Published figures include its further stages inside the language model, which
    are `visiondrop_inside`: ``prune(model, VisionDrop(keep=48), inside="visiondrop_inside")``.

    Source: "Rethinking Visual Token Reduction in LVLMs under Cross-Modal Misalignment" (VisionDrop), arXiv 2506.22283,
    AAAI 2026.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them, dominant and contextual ones together.
    contextual : float
        The share of kept tokens that are contextual, in [0, 1): 6 of 48, as released.

    Notes
    -----
        dominant: the k − n tokens of largest a_i,  n = round(contextual · k)
        y_t = x_t + mean of x_j over the tokens j that join t
        j joins argmax_t cos(k_j, k_t)

        a_i, k_i, x_i: attention received, key and features of token i in the tower
        t: a contextual token, n of them; k: tokens to keep
        y_t: features that the projector reads
    """

    name: ClassVar[str] = "visiondrop"
    source: ClassVar[str] = "VisionDrop, arXiv 2506.22283, stage 0"

    contextual: float = 6 / 48


@dataclass(frozen=True)
class VisionDropInside(InsidePruner):
    """Keep the visual tokens that other visual tokens attend to, and merge the others into a few more.

    This is the part of VisionDrop inside the language model; `visiondrop` is the part in front of it. In front of each
    stage's layer, a token's score is the mean attention of all visual tokens to it in the layer at hand; attention of
    the text does not count. Of the tokens that are left, evenly spaced ones become contextual tokens: every other token
    joins the contextual token whose key is nearest, and the mean of those that join is added to it. Tokens that stay
    are numbered anew.

    Source: "Rethinking Visual Token Reduction in LVLMs under Cross-Modal Misalignment" (VisionDrop), arXiv 2506.22283,
    AAAI 2026, and its code, which puts contextual tokens behind the dominant ones. Here they stay where they were, and
    with a budget the published schedule is scaled.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves 35, 26 and
        19 of 48.
    layers : tuple of int or float
        In front of which layers, counted from 0, or at which shares of the depth: layers 8, 16 and 24 of 32.
    contextual : float
        The share of the tokens of a stage that are contextual, in [0, 1): 5 of 35, 4 of 26 and 3 of 19 as released.

    Notes
    -----
        score_i = mean_q A(q, i)
        h'_t    = h_t + mean of h_j over the tokens j that join t
        j joins argmax_t cos(k_j, k_t)

        A(q, i): attention of visual token q to i in the layer at hand, mean of heads
        t: a contextual token; h_j, k_j: token j as the layer reads it, and its key
    """

    name: ClassVar[str] = "visiondrop_inside"
    source: ClassVar[str] = "arXiv 2506.22283, stages 1 to 3"
    query_aware: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    numbering: ClassVar[PositionPolicy] = "contiguous"

    layers: tuple[int | float, ...] = (0.25, 0.5, 0.75)
    contextual: float = 1 / 7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self.layers)
        if len(self.layers) != 3:
            raise ValueError(f"layers={self.layers} must be three, as the schedule of the paper is")
        if isinstance(self.contextual, bool) or not isinstance(self.contextual, (int, float)):
            raise TypeError(f"contextual must be a float, not {type(self.contextual).__name__}")
        if not 0 <= self.contextual < 1:
            raise ValueError(f"contextual={self.contextual} is not a share in [0, 1); the paper uses about 0.143")

    def places(self) -> tuple[int | float, ...]:
        """Return the layers."""
        return self.layers

    def shares(self, share: float | None, stages: int) -> tuple[float, ...]:
        """Return the published shares, or what is between them and nothing or all."""
        published = (35 / 48, 26 / 48, 19 / 48)
        return published[:stages] if share is None else between([published], share, stages)

    def score_at(self, layer: Layer) -> Tensor:
        """Return the attention of all visual tokens in the layer at hand."""
        return layer.here.heads.attention(layer.visual)[layer.visual]

    @exact_float32()
    def choose_at(self, scores: Tensor, layer: Layer, keep: int | None) -> Tensor | Mixed:
        """Return the dominant tokens, and evenly spaced others with what joins them."""
        assert keep is not None
        contextual = min(round(self.contextual * keep), keep - 1)
        dominant = torch.sort(scores, descending=True, stable=True).indices[: keep - contextual]
        if not contextual:
            return dominant
        is_rest = torch.ones_like(scores, dtype=torch.bool).index_fill(0, dominant, False)
        rest = is_rest.nonzero()[:, 0]
        targets = rest[:: max(1, len(rest) // contextual)][:contextual]
        others = is_rest.index_fill(0, targets, False).nonzero()[:, 0]
        keys = F.normalize(layer.here.heads.keys[:, layer.visual].float().mean(0), dim=-1)
        joined = (keys[others] @ keys[targets].T).argmax(1)
        hidden = layer.here.hidden[layer.visual]
        return Mixed(
            torch.cat([dominant, targets]),
            targets,
            hidden[targets].float() + averages(hidden[others], joined, contextual),
        )
