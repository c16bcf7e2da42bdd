"""EVS: the first frame, and of later frames what has changed since the frame before."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.lattice import spread
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class EVS(Pruner):
    """Keep the first frame of a video, and the tokens that differ most from the same place of the frame before.

    The score of a token is 1 minus the cosine between its embedding and that of the same row and column one frame
    earlier. All frames are ranked together. The first frame comes before all others. Where a model leaves tokens of a
    video out by itself, the latest earlier frame that has the place is compared, and a place that no earlier frame has
    counts as part of the first.

    The budget is met exactly. If it is smaller than the first frame, it is spread evenly over that frame as by `grid`,
    and no other frame has a token. This is so for every image, since an image has one frame, and for every frame with
    the scope "tile". A warning says so.

    Source: "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference", arXiv 2510.14624.
    This is the method as vLLM serves it, which compares embeddings behind the projector; it was not checked against the
    paper's own text. In vLLM the budget is raised to the tokens of a frame where it is smaller.

    Parameters
    ----------
    keep : int or float
        Tokens per video, or a share of them.

    Notes
    -----
        score_i = 1 − cos(z_i, z_b)

        z_i: embedding of token i; b: token at the same place one frame earlier
        score_i = 2, the largest possible, for tokens of the first frame
    """

    name: ClassVar[str] = "evs"
    source: ClassVar[str] = "EVS, arXiv 2510.14624, as in vLLM"
    scores_label: ClassVar[str] = "change since the frame before"
    modalities: ClassVar[tuple[Literal["image", "video"], ...]] = ("video",)

    @exact_float32()
    def score(self, tokens: VisualTokens) -> Tensor:
        """Return how much each token has changed, and 2, the most it can, for those that have nothing before them."""
        before = _earlier(tokens.positions).to(tokens.embeddings.device)
        unit = F.normalize(tokens.embeddings.float(), dim=-1)
        return (1 - (unit * unit[before]).sum(-1)).masked_fill(before < 0, 2)

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick the first frame, and then what has changed most."""
        new = _earlier(tokens.positions) < 0
        first = new.nonzero()[:, 0]
        if keep >= len(first):
            first_of_all = scores.masked_fill(new.to(scores.device), torch.inf)
            return first_of_all.sort(descending=True, stable=True).indices[:keep]
        if len(first) == len(tokens):
            what = "compares frames, and here is one: its tokens are spread evenly, as by grid; choose another method"
        else:
            what = f"keeps the first frame, whose {len(first)} tokens are more than {keep}: give a larger budget"
        warnings.warn(f"evs {what}", stacklevel=2)
        return first[spread(tokens.positions.cpu()[first], keep)]


def _earlier(positions: Tensor) -> Tensor:
    """Return the token at the same place of the latest earlier frame, -1 where there is none: int64, on the CPU."""
    frame, place = positions[:, 0].cpu(), positions[:, 1:].cpu()
    place = place.unique(dim=0, return_inverse=True)[1]
    # Ordered by place and then by frame, so that what comes before is one frame earlier or at another place.
    key = place * (int(frame.max()) + 1) + frame
    ordered, order = key.sort(stable=True)
    last = torch.searchsorted(ordered, key) - 1
    before = order[last.clamp_min(0)]
    return before.where((last >= 0) & (place[before] == place), -1)
