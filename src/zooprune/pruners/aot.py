"""AOT: tokens of local and of global attention, into which all others are merged by optimal transport."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.averaging import averages
from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.merging import own_places
from zooprune.selection.transport import sinkhorn
from zooprune.tokens import Selection, VisualTokens

#: Windows along each side of the image, as published.
_WINDOWS = 3
#: The weight of distance in the image against distance in direction, as published.
_SPACE = 0.5
#: The share of the mean over the nearest tokens in what an anchor becomes, as published.
_NEAREST = 0.1


@dataclass(frozen=True)
class AOT(Pruner):
    """Keep tokens that receive attention locally or globally, and merge all others into them by optimal transport.

    The kept tokens are anchors. Half of them are local: the image is divided into 3 x 3 windows, and every window gives
    the same number of tokens, those that receive most attention in a shallow layer of the vision tower. The other half
    is global: it receives most attention in the last layer but one. All other tokens are transported to the anchors,
    behind the projector. The cost is the cosine distance plus half the distance in the image, whose sides have length
    1. An anchor becomes the weighted mean of itself, with weight 1, and of what arrives, with the mass that arrives.
    This makes up nine tenths of the result. The last tenth is the plain mean of the anchor and of the tokens that are
    nearest to it by cosine.

    Source: "Token Reduction via Local and Global Contexts Optimization for Efficient Video Large Language Models",
    arXiv 2603.01400, CVPR 2026, the part inside a frame. The part between frames, whose number of tokens depends on
    the video, is not part of this method. Where the windows leave a remainder, more tokens are global, so that the
    budget is met. The released code stops the iterations of the transport early; here all 100 are run. The released
    code treats every frame and tile by itself, which the scope "tile" does here. With other scopes, tokens of different
    tiles count as far from each other as opposite corners of an image.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    local : float
        The share of anchors that are local, in [0, 1].

    Notes
    -----
        T    = plan of least Σ_ij T_ij C_ij (Sinkhorn, temperature 0.1)
        C_ij = 1 − cos(z_i, z_j) + 0.5 ‖p_i − p_j‖
        z'_j = 0.9 (z_j + Σ_i T_ij z_i) / (1 + Σ_i T_ij) + 0.1 m_j

        i: a dropped token; j: an anchor; z: embedding; p: place in [0, 1] x [0, 1]
        T_ij: mass that moves from i to j; z'_j: what the language model reads for j
        m_j: mean of anchor j and the dropped tokens most similar to it by cosine
    """

    name: ClassVar[str] = "aot"
    source: ClassVar[str] = "AOT, arXiv 2603.01400"
    # The last but one of 26 layers, and the sixth of them, as published.
    needs: ClassVar[tuple[str, ...]] = ("tower_received/0.96", "tower_received/0.23")
    scores_label: ClassVar[str] = "attention received"
    merges: ClassVar[bool] = True

    local: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.local, bool) or not isinstance(self.local, (int, float)):
            raise TypeError(f"local must be a number, not {type(self.local).__name__}")
        if not 0 <= self.local <= 1:
            raise ValueError(f"local={self.local} is not a share in [0, 1]; the paper uses 0.5")

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives in the deep layer."""
        return tokens.signals["tower_received/0.96"][:, 0]

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Selection:
        """Pick the anchors and transport the other tokens to them."""
        tile, window, place = _layout(tokens.positions.to(scores.device))
        local = self._local(tokens.signals["tower_received/0.23"][:, 0].float(), window, keep)
        ranked = scores.masked_fill(local, torch.inf).sort(descending=True, stable=True).indices
        index, others, total = ranked[:keep].sort().values, ranked[keep:].sort().values, len(tokens)
        into = own_places(index, total)
        if not len(others):
            return Selection(index, total, into=into)
        embeddings = tokens.embeddings.float()
        unit = F.normalize(embeddings, dim=-1)
        cosines = unit[others] @ unit[index].T
        away = (place[others, None] - place[index]).norm(dim=-1)
        away = away.where((tile[others, None] == tile[index]) & (tile[index] >= 0), math.sqrt(2))
        plan = sinkhorn(1 - cosines + _SPACE * away)
        transported = (embeddings[index] + plan.T @ embeddings[others]) / (1 + plan.sum(0)[:, None])
        into[others] = cosines.argmax(1)
        merged = (1 - _NEAREST) * transported + _NEAREST * averages(embeddings, into, keep)
        return Selection(index, total, merged=merged.to(tokens.embeddings.dtype), into=into)

    def _local(self, attention: Tensor, window: Tensor, keep: int) -> Tensor:
        """Return which tokens are local anchors: the same number in every window, as far as there are so many."""
        order = attention.sort(descending=True, stable=True).indices
        order = order[window[order].sort(stable=True).indices]
        # Tokens that are in no window come first; they count as one more window, whose number is 0.
        sizes = (window + 1).bincount(minlength=2)
        each = int(self.local * keep) // (len(sizes) - 1)
        starts = sizes.cumsum(0) - sizes
        rank = torch.arange(len(order), device=order.device) - starts[window[order] + 1]
        chosen = (rank < each) & (window[order] >= 0)
        return torch.zeros_like(chosen).index_put((order,), chosen)


def _layout(positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tile, the window and the place in [0, 1] x [0, 1] of each token; -1 where a token shows no patch."""
    shown = (positions[:, 2:] >= 0).all(1)
    sizes = positions.amax(0).clamp_min(0) + 1
    tile = positions[:, 0] * sizes[1] + positions[:, 1]
    inside = positions[:, 2:] * _WINDOWS // sizes[2:]
    window = (tile * _WINDOWS + inside[:, 0]) * _WINDOWS + inside[:, 1]
    place = positions[:, 2:] / (sizes[2:] - 1).clamp_min(1)
    return tile.where(shown, -1), window.where(shown, -1), place
