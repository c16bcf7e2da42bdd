"""CATP: tokens that cover the image and agree with the text, and tokens that gain attention inside the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.pruners.inside import InsidePruner, check_layers, check_share
from zooprune.selection.facility import facility_location
from zooprune.tokens import Budget, VisualTokens

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer


@dataclass(frozen=True)
class CATP(Pruner):
    """Keep tokens that cover the image and are similar to its text.

    This is stage 1 of the paper, which prunes behind the projector. The kept set grows greedily: each step adds the
    token with the largest sum of what it adds to the coverage of all tokens, and a weight times its similarity to the
    mean embedding of the text. Similarities are cosines brought to [0, 1]. The paper prunes the images of in-context
    examples, and pairs each image with the text of its own example. Here the text is the whole prompt, as the language
    model's own table embeds it. Stage 2 prunes inside the language model; it is `catp_inside`.

    Source: "CATP: Contextually Adaptive Token Pruning for Efficient and Enhanced Multimodal In-Context Learning",
    arXiv 2508.07871, AAAI 2026, stage 1. There is no released code. The paper removes half of the budget in each stage;
    here the budget is that of stage 1.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    alignment : float
        The weight of the similarity to the text, lambda_1 in the paper.

    Notes
    -----
        next    = argmax_i Σ_j max(0, s(z_i, z_j) − c_j) + alignment · s(z_i, t)
        s(x, y) = (1 + cos(x, y)) / 2

        z_i: embedding of token i; t: mean embedding of the text
        c_j: largest s(z_j, z_m) of token j to a kept token m; 0 at first
    """

    name: ClassVar[str] = "catp"
    source: ClassVar[str] = "CATP, arXiv 2508.07871"
    needs: ClassVar[tuple[str, ...]] = ("question",)
    scores_label: ClassVar[str] = "similarity to the text"
    query_aware: ClassVar[bool] = True

    alignment: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weight(self.alignment, 0.7)

    @exact_float32()
    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the similarity of each token to the text, zeros for a prompt without text."""
        question = tokens.context["question"].float()
        if not len(question):
            return torch.zeros(len(tokens), dtype=torch.float32, device=tokens.embeddings.device)
        unit = F.normalize(tokens.embeddings.float(), dim=-1)
        return (unit @ F.normalize(question.mean(0), dim=-1) + 1) / 2

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick greedily by coverage and similarity to the text."""
        return facility_location(tokens.embeddings, keep, bonus=self.alignment * scores)


@dataclass(frozen=True)
class CATPInside(InsidePruner):
    """Keep tokens of example images that gain attention, and tokens of the last image that fit the examples.

    This is stage 2 of the paper, for prompts that show examples before they ask; `catp` is stage 1. The score of a
    token of any image but the last is the growth of the attention that the prompt's last token pays to it, from the
    layer before to the layer at hand, plus a weight times its cosine to the mean of the last image and the text behind
    it. One layer later, the score of a token of the last image is its cosine to the mean of everything in front of the
    image, which is pruned by then. A single image is scored like an example, with the text behind it alone.

    Source: "CATP: Contextually Adaptive Token Pruning for Efficient and Enhanced Multimodal In-Context Learning", arXiv
    2508.07871, AAAI 2026, stage 2. There is no released code. The paper ranks the tokens of all examples together; here
    each image has its own budget. Where the budget leaves no room to prune the last image a layer later, it is pruned
    with the others. The paper does not mention positions; here tokens keep theirs.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves `ratio`.
    layer : int or float
        In front of which layer, counted from 0, or at which share of the depth: layer 6 of 32 in the paper.
    ratio : float
        The share of the visual tokens that stays, where `keep` is None: stage 1 leaves 11/18 and both stages 2/9 where
        the paper removes 77.8 %.
    alignment : float
        The weight of the cosine, lambda_2 in the paper.

    Notes
    -----
        examples:   score_i = max(0, A_l(i) − A_{l−1}(i)) + alignment · cos(h_i, m)
        last image: score_i = cos(h_i, n), one layer later

        A_l(i): attention of the prompt's last token to i in layer l, mean of heads
        h_i: token i as layer l reads it; m: mean of the last image and the text behind
        n: mean of everything in front of the last image
    """

    name: ClassVar[str] = "catp_inside"
    source: ClassVar[str] = "arXiv 2508.07871, stage 2"
    scores_label: ClassVar[str] = "attention gained and similarity"

    layer: int | float = 6 / 32
    ratio: float = 4 / 11
    alignment: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers([self.layer])
        check_share("ratio", self.ratio)
        _check_weight(self.alignment, 0.6)

    def places(self) -> tuple[int | float, ...]:
        """Return the one layer."""
        return (self.layer,)

    def shares(self, share: float | None, stages: int) -> tuple[float, ...]:
        """Return what is left from the layer on."""
        return (self.ratio if share is None else share,)

    def schedule(self, visual: int, total: int, depth: int, *, last: bool = True) -> tuple[tuple[int, int | None], ...]:
        """Prune the last image one layer later than the others."""
        found = super().schedule(visual, total, depth)
        later = found[0][0] + 1 if found else depth
        met = self.keep is None or visual * later <= self.uncut_share * Budget(self.keep).count(total) * depth
        if not last or later >= depth or not met:
            return found
        return super(CATPInside, dataclasses.replace(self, layer=later)).schedule(visual, total, depth)

    @exact_float32()
    def score_at(self, layer: Layer) -> Tensor:
        """Return the gain of attention and the cosine for examples, and the cosine to them for the last image."""
        hidden, first = layer.here.hidden.float(), int(layer.visual[0])
        own = hidden[layer.visual]
        is_last = torch.equal(layer.images[-1], layer.visual)
        if is_last and len(layer.images) > 1:
            return F.cosine_similarity(own, hidden[:first].mean(0), dim=-1)
        asking = layer.question if is_last else torch.cat([layer.images[-1], layer.question])
        gained = layer.here.heads.attention(layer.last) - layer.before.heads.attention(layer.last)
        alike = F.cosine_similarity(own, hidden[asking].mean(0), dim=-1)
        return gained[layer.visual].clamp_min(0) + self.alignment * alike


def _check_weight(alignment: float, published: float) -> None:
    if isinstance(alignment, bool) or not isinstance(alignment, (int, float)):
        raise TypeError(f"alignment must be a number, not {type(alignment).__name__}")
    if not 0 <= alignment < float("inf"):
        raise ValueError(f"alignment={alignment} must be finite and not negative; the paper uses {published}")
