"""SparseVLM: the words that fit the image rate its patches, and the best of what is dropped is recycled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from zooprune.averaging import averages
from zooprune.policy import PositionPolicy
from zooprune.precision import exact_float32
from zooprune.pruners.inside import InsidePruner, Mixed, between, check_layers
from zooprune.selection.density import density_peaks

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer

#: What the three stages leave of 576 tokens, for budgets of 64, 96, 128 and 192.
_COUNTS = {
    "1.5": ((66, 30, 17), (238, 48, 26), (303, 110, 36), (300, 200, 110)),
    "2": ((66, 34, 20), (246, 54, 28), (238, 108, 60), (300, 200, 118)),
}
#: The share of the heads that version 2 uses: 14 of 32.
_HEADS = 14 / 32
#: The least effect of positions that version 2 divides by.
_NEARNESS = 0.01


@dataclass(frozen=True)
class SparseVLM(InsidePruner):
    """Keep the visual tokens that receive attention from those words of the question that fit the image.

    The raters are those text tokens behind the image whose similarity to the image's tokens is above the average, by
    the embeddings that enter the language model. The score of a visual token is the mean attention of the raters in the
    layer before. Of the tokens that are dropped, the best 30 % are not lost: they are clustered by density, and the
    mean of each cluster takes the place of its centre. Tokens that stay are numbered anew.

    Version 2 divides attention by the effect of rotary positions alone, uses only the heads that attend to the image
    most, recycles nothing and lets tokens keep their positions.

    Source: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", arXiv
    2410.04417, and its code in versions 1.5 and 2. The code has fixed numbers of tokens for four budgets, and recycled
    tokens come on top of them and stand behind all others. Here the schedule for a budget is interpolated between
    these. Recycled tokens are part of the budget, at most half of it, and stand where the centres of their clusters
    stood.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves 300, 200
        and 110 of 576 (118 in version 2).
    layers : tuple of int or float
        In front of which layers, counted from 0, or at which shares of the depth: behind layers 2, 6 and 15 of 32 in
        the paper.
    version : {"1.5", "2"}
        The version of the paper's code.

    Notes
    -----
        score_i = mean_{q ∈ R} mean_h A_h(q, i)
        R       = {q : r_q > mean r},  r_q = mean_i softmax_q(v_i · t_q)

        A_h(q, i): attention of text token q to visual token i in head h of the layer
                   before; version 2 divides it by the effect of positions alone
        v_i, t_q: visual token i and text token q as they enter the language model
        R: raters, all of the text behind the image if R would be empty
    """

    name: ClassVar[str] = "sparsevlm"
    source: ClassVar[str] = "arXiv 2410.04417"
    merges: ClassVar[bool] = True

    layers: tuple[int | float, ...] = (3 / 32, 7 / 32, 16 / 32)
    version: Literal["1.5", "2"] = "1.5"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self.layers)
        if len(self.layers) != 3:
            raise ValueError(f"layers={self.layers} must be three, as the schedules of the paper are")
        if self.version not in _COUNTS:
            raise ValueError(f'version={self.version!r} must be "1.5" or "2"')

    def numbers(self) -> PositionPolicy:
        """Return what the version does."""
        return "contiguous" if self.version == "1.5" else "original"

    def places(self) -> tuple[int | float, ...]:
        """Return the layers."""
        return self.layers

    def shares(self, share: float | None, stages: int) -> tuple[float, ...]:
        """Return what is left between two published schedules."""
        published = [[count / 576 for count in counts] for counts in _COUNTS[self.version]]
        return tuple(published[-1][:stages]) if share is None else between(published, share, stages)

    def score_at(self, layer: Layer) -> Tensor:
        """Return the attention of the raters."""
        raters = layer.question[raters_among(layer.words, layer.patches)]
        if self.version == "1.5":
            return layer.before.heads.attention(raters)[layer.visual]
        masses, rated = [], []
        # Some rows at a time, so that the attention is never there as a whole.
        for rows in raters.split(16):
            seen = layer.before.heads.probabilities(rows)[:, :, layer.visual]
            near = layer.before.nearness(rows)[:, layer.visual].clamp_min(_NEARNESS)
            masses.append(seen.sum((1, 2)))
            rated.append((seen / near).sum(1))
        mass = torch.stack(masses).sum(0)
        heads = mass.sort(descending=True, stable=True).indices[: max(1, round(_HEADS * len(mass)))]
        return torch.stack(rated).sum(0)[heads].mean(0) / len(raters)

    def choose_at(self, scores: Tensor, layer: Layer, keep: int | None) -> Tensor | Mixed:
        """Return the best tokens, and the clusters of the best of the others."""
        order = torch.sort(scores, descending=True, stable=True).indices
        assert keep is not None
        recycled = self.recycled(len(scores), keep)
        if not recycled:
            return order[:keep]
        kept, dropped = order[: keep - recycled], order[keep - recycled :]
        pool = dropped[: _pool(len(dropped))].sort().values
        rows = layer.here.hidden[layer.visual[pool]]
        centres, into = density_peaks(rows, recycled)
        return Mixed(torch.cat([kept, pool[centres]]), pool[centres], averages(rows, into, recycled))

    def recycled(self, alive: int, keep: int) -> int:
        """Return how many of the tokens that stay are clusters."""
        if self.version == "2":
            return 0
        most = keep // 2
        return next((count for count in range(most) if _clusters(alive - keep + count) <= count), most)


def _pool(dropped: int) -> int:
    """Return how many of the dropped tokens are recycled."""
    return dropped * 3 // 10 + 1


def _clusters(dropped: int) -> int:
    """Return how many clusters these make."""
    return _pool(dropped) // 10 + 1


@exact_float32()
def raters_among(words: Tensor, patches: Tensor) -> Tensor:
    """Return which words are above the mean of what patches are similar to, all where none is: int64.

    Parameters
    ----------
    words : Tensor, (Q, d)
    patches : Tensor, (N, d)
    """
    likeness = (patches.float() @ words.float().T).softmax(1).mean(0)
    above = (likeness > likeness.mean()).nonzero()[:, 0]
    return above if len(above) else torch.arange(len(words), device=words.device)
