"""ToDRE: a diverse set of tokens, and no tokens at all once image and text hardly attend to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from zooprune.pruners.base import Pruner
from zooprune.pruners.inside import check_share
from zooprune.pruners.vtw import VisualTokensWithdrawal
from zooprune.selection.max_sum import greedy_max_sum
from zooprune.tokens import VisualTokens

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer


@dataclass(frozen=True)
class ToDRE(Pruner):
    """Keep the token of most attention, and then, step by step, the token least similar to all kept tokens together.

    This is stage 1 of the paper, which prunes in front of the language model. The first token receives the most
    attention in the last layer of the vision tower, from the class token where there is such a token, and from all
    patches otherwise; the paper draws it at random there. Every further token has the smallest sum of cosines to the
    kept ones. Stage 2, which drops all visual tokens inside the language model, is `todre_inside`.

    Source: "ToDRE: Visual Token Pruning via Diversity and Task Awareness for Efficient Large Vision-Language Models",
    arXiv 2505.18757, stage 1. There is no released code. With several tiles the paper takes the first token from the
    thumbnail; here it is the token of most attention in all tiles.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.

    Notes
    -----
        first = argmax_i a_i
        next  = argmin_i Σ_{j ∈ K} cos(z_i, z_j)

        a_i: attention that token i receives in the last layer of the vision tower
        z_i: embedding of token i; K: tokens kept so far
    """

    name: ClassVar[str] = "todre"
    source: ClassVar[str] = "ToDRE, arXiv 2505.18757"
    needs: ClassVar[tuple[str, ...]] = ("tower_attention/-1",)
    scores_label: ClassVar[str] = "attention received"

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives."""
        return tokens.signals["tower_attention/-1"][:, 0]

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick greedily by sums of cosines."""
        return greedy_max_sum(tokens.embeddings, scores.argmax(), keep)


@dataclass(frozen=True)
class ToDREInside(VisualTokensWithdrawal):
    """Drop all visual tokens in front of a late layer if image and text hardly attend to each other.

    This is stage 2 of the paper; `todre` is stage 1. In the layer before, the share of attention that the text behind
    the image gives the visual tokens and the share that the visual tokens give the text must both be below a threshold.
    With a budget, attention is not checked: the layer is the one with which the average is met, as with `vtw`.

    Source: "ToDRE: Visual Token Pruning via Diversity and Task Awareness for Efficient Large Vision-Language Models",
    arXiv 2505.18757, stage 2. There is no released code. Shares are means over heads and tokens; the text that visual
    tokens attend to is that in front of them, its first token included. The paper does not mention positions; here the
    text keeps its own.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None checks attention
        at `layer`.
    layer : int or float
        In front of which layer, counted from 0, or at which share of the depth, where `keep` is None: layer 28 of 32.
    threshold : float
        Both shares of attention must be below it, where `keep` is None.

    Notes
    -----
        drop all if  mean_q Σ_i A(q, i) < threshold  and  mean_i Σ_t A(i, t) < threshold

        A(q, i): attention of token q to token i in the layer before, mean of heads
        i: visual tokens; q: tokens of the text behind the image; t: tokens of all text
    """

    name: ClassVar[str] = "todre_inside"
    source: ClassVar[str] = "arXiv 2505.18757, stage 2"
    query_aware: ClassVar[bool] = True

    layer: int | float = 0.875
    threshold: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("threshold", self.threshold)

    def schedule(self, visual: int, total: int, depth: int, *, last: bool = True) -> tuple[tuple[int, int | None], ...]:
        """Leave it to `choose_at` what stays where there is no budget."""
        found = super().schedule(visual, total, depth, last=last)
        return tuple((layer, None) for layer, _ in found) if self.keep is None else found

    def score_at(self, layer: Layer) -> Tensor:
        """Return the attention of the text behind the image in the layer before."""
        return layer.before.heads.attention(layer.question)[layer.visual]

    def choose_at(self, scores: Tensor, layer: Layer, keep: int | None) -> Tensor:
        """Return none of the tokens if both shares are small, and all otherwise."""
        given = layer.before.heads.attention(layer.visual)[layer.text].sum()
        heedless = (scores.sum() < self.threshold) & (given < self.threshold)
        return (~heedless).expand(len(scores)).nonzero()[:, 0]
