"""AdaptInfer: the words that other words attend to decide which patches count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from zooprune.policy import PositionPolicy
from zooprune.pruners.inside import InsidePruner, check_layers, check_share

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer


@dataclass(frozen=True)
class AdaptInfer(InsidePruner):
    """Keep the visual tokens that the question attends to, with a weight for each of the question's tokens.

    In each head, the weight of a token of the text behind the image is the attention that it receives from this text,
    plus the attention that it pays to the other tokens of it. The attention is that of the layer before. Tokens that
    stay are numbered anew.

    Source: Zhang et al., "AdaptInfer: Adaptive Token Pruning for Vision-Language Model Inference with Dynamical Text
    Guidance", arXiv 2508.06084, and its code. The code has fixed numbers of tokens, 290, 72 and 18 of 576 for an
    average of 128; here the stages leave the first, third and fifth power of one share, which gives 290, 73 and 18.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves `ratio`.
    layers : tuple of int or float
        In front of which layers, counted from 0, or at which shares of the depth: behind layers 1, 10 and 20 of 32 in
        the paper.
    ratio : float
        The share that the first stage leaves, where `keep` is None.

    Notes
    -----
        score_i = Σ_h Σ_q w_h(q) · A_h(q, i)
        w_h(q)  = Σ_p A_h(p, q) + Σ_{p ≠ q} A_h(q, p)

        A_h(q, i): attention of token q to token i in head h of the layer before
        p, q: tokens of the text behind the image; w_h(q): weight of q in head h
    """

    name: ClassVar[str] = "adaptinfer"
    source: ClassVar[str] = "arXiv 2508.06084"
    numbering: ClassVar[PositionPolicy] = "contiguous"

    layers: tuple[int | float, ...] = (0.0625, 0.34375, 0.65625)
    ratio: float = 290 / 576

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self.layers)
        check_share("ratio", self.ratio)

    def places(self) -> tuple[int | float, ...]:
        """Return the layers."""
        return self.layers

    def shares(self, share: float | None, stages: int) -> tuple[float, ...]:
        """Return odd powers of the first share."""
        first = self.ratio if share is None else share
        return tuple(first ** (2 * stage + 1) for stage in range(stages))

    def score_at(self, layer: Layer) -> Tensor:
        """Return the attention of the question, weighed by head and token."""
        heads, words = layer.before.heads, layer.question
        importance = torch.zeros(len(heads.queries), len(words), dtype=torch.float32, device=words.device)
        # Row by row, twice, so that the attention is never there as a whole.
        for place, word in enumerate(words.tolist()):
            row = heads.probabilities(word)[:, words]
            # What it gives and what it takes, its attention to itself counted once.
            importance += row
            importance[:, place] += row.sum(1) - row[:, place]
        scores = torch.zeros(len(layer.visual), dtype=torch.float32, device=words.device)
        for place, word in enumerate(words.tolist()):
            scores += importance[:, place] @ heads.probabilities(word)[:, layer.visual]
        return scores
