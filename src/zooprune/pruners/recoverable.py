"""Recoverable Compression: tokens that stand out by attention or by the question, and clusters of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.merging import own_places
from zooprune.selection.outliers import local_outliers
from zooprune.tokens import Selection, VisualTokens

#: How many neighbours are added to each centre, as published.
_NEIGHBOURS = 32
#: The weight of text similarity among key cosines: 50, and the root of the width of CLIP's space, as published.
_TEXT = 50 / 768**0.5


@dataclass(frozen=True)
class RecoverableCompression(Pruner):
    """Keep tokens that stand out by attention, recover those that stand out by the question, and cluster the rest.

    Tokens that stand out by attention come first. Of the others, those that stand out by their similarity to the text
    are recovered. Of the rest, the tokens of most attention become centres: to each centre the 32 tokens with the
    largest sum of key cosine and text similarity are added, each times its attention. All other tokens, each times its
    attention, are summed into a rest token, which takes the place of the strongest of them. Merging happens in front
    of the projector. How many tokens stand out is the number of local outliers among the scores. Attention and keys
    are those of the tower's last layer, with the heads side by side as a single head. Towers without a class token use
    the mean attention of all patches.

    Source: "Recoverable Compression: A Multimodal Vision Token Recovery Mechanism Guided by Text Information", arXiv
    2409.01179, AAAI 2025. The paper compares patches and text in CLIP's space. Here embeddings are compared with the
    mean of the prompt's text in the language model's own table, which every model has. In the paper the number of
    tokens depends on the image; here the budget is met unless `native` is set, and the parts share it in proportion to
    their native numbers. The released code clusters by the keys of other tokens, takes as many centres as the share of
    outliers among the rest times the number of kept tokens, and puts merged tokens last. Here keys belong to their
    tokens, there is a centre for each outlier among the rest, and tokens keep their place in the image.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them, all parts together.
    native : bool
        Let the image decide how many tokens stay, as the paper does. `keep` is then ignored, unless it keeps all.

    Notes
    -----
        y_c  = x_c + Σ_{j ∈ N(c)} a_j x_j
        rest = Σ_{j no centre} a_j x_j
        N(c) = the 32 tokens j of largest cos(k_c, k_j) + 50 / √768 · cos(z_j, t)

        c: a centre; j: tokens that are neither kept by attention nor by the question
        a, x, k, z: attention received, features, key and embedding of a token
        t: mean embedding of the text; y_c, rest: features that the projector reads
    """

    name: ClassVar[str] = "recoverable"
    source: ClassVar[str] = "Recoverable Compression, arXiv 2409.01179"
    needs: ClassVar[tuple[str, ...]] = ("question", "tower_joint_attention/-1", "tower_joint_keys/-1")
    scores_label: ClassVar[str] = "attention received"
    merges: ClassVar[bool] = True
    query_aware: ClassVar[bool] = True

    native: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.native, bool):
            raise TypeError(f"native must be True or False, not {self.native!r}")

    def is_exact(self) -> bool:
        """Return whether the budget is met; natively the image decides."""
        return not self.native

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives."""
        return tokens.signals["tower_joint_attention/-1"][:, 0]

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Selection:
        """Pick the tokens that stand out, and merge the others."""
        total = len(tokens)
        if keep == total:
            everything = torch.arange(total, device=scores.device)
            return Selection(everything, total, into=everything)
        text = _similarity(tokens)
        parts = _parts(scores, text)
        seen, asked, merged = parts if self.native else _shares(parts, keep)
        ranked = scores.sort(descending=True, stable=True).indices
        by_eye = ranked[:seen]
        by_text = text.index_fill(0, by_eye, -torch.inf).sort(descending=True, stable=True).indices[:asked]
        kept = torch.cat([by_eye, by_text])
        rest = ranked[~torch.isin(ranked, kept)]
        if not merged:
            return Selection(kept.sort().values, total)
        # The last part of the budget is the rest token, which stands at the next token after the centres.
        centres, others = rest[: max(1, merged - 1)], rest[max(1, merged - 1) :]
        return _merged(scores, text, tokens, kept, centres, others, rest_token=merged > 1)


def _similarity(tokens: VisualTokens) -> Tensor:
    """Return the cosine of each token to the mean of the text, zeros for a prompt without text."""
    question = tokens.context["question"].float()
    if not len(question):
        return torch.zeros(len(tokens), dtype=torch.float32, device=tokens.embeddings.device)
    return F.normalize(tokens.embeddings.float(), dim=-1) @ F.normalize(question.mean(0), dim=-1)


def _parts(attention: Tensor, text: Tensor) -> tuple[int, int, int]:
    """Return how many tokens stand out by attention, how many by the text, and how many become of the rest."""
    total, ranked = len(attention), attention.sort(descending=True, stable=True).indices
    seen = int(local_outliers(attention, 20).sum())
    others = text.index_fill(0, ranked[:seen], float(text.min()))
    asked = (total - seen) * int(local_outliers(others, 20).sum()) // total
    by_text = others.index_fill(0, ranked[:seen], -torch.inf).sort(descending=True, stable=True).indices[:asked]
    rest = ranked[seen:][~torch.isin(ranked[seen:], by_text)]
    centres = int(local_outliers(attention[rest], 10).sum())
    # A rest token is added where there are centres; an image without any outlier keeps its strongest token.
    merged = centres + 1 if 0 < centres < len(rest) else centres
    return (seen, asked, merged) if seen + asked + merged else (1, 0, 0)


def _shares(parts: tuple[int, int, int], keep: int) -> list[int]:
    """Divide a budget in proportion to the parts, the largest remainders rounded up."""
    exact = [keep * part / sum(parts) for part in parts]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(parts)), key=lambda part: shares[part] - exact[part])
    for part in by_remainder[: keep - sum(shares)]:
        shares[part] += 1
    return shares


def _merged(
    attention: Tensor,
    text: Tensor,
    tokens: VisualTokens,
    kept: Tensor,
    centres: Tensor,
    others: Tensor,
    rest_token: bool,
) -> Selection:
    rest = torch.cat([centres, others])
    unit = F.normalize(tokens.signals["tower_joint_keys/-1"].float(), dim=-1)
    closeness = unit[centres] @ unit[rest].T + _TEXT * text[rest]
    own = torch.arange(len(centres), device=rest.device)
    closeness[own, own] = -torch.inf
    near = closeness.sort(descending=True, stable=True).indices[:, : min(_NEIGHBOURS, len(rest) - 1)]
    weights = torch.zeros_like(closeness).scatter_(1, near, attention[rest][near])
    added = torch.zeros_like(closeness, dtype=torch.bool).scatter_(1, near, True)
    weights[own, own] = 1.0
    places = centres
    if rest_token:
        left = attention[rest].index_fill(0, own, 0.0)
        weights, places = torch.cat([weights, left[None]]), torch.cat([centres, others[:1]])
    index = torch.cat([kept, places]).sort().values
    into = own_places(index, len(tokens))
    # A token that is merged is held by the closest of the centres it is added to, or else by the rest token.
    best, holder = closeness.where(added, -torch.inf).max(0)
    fallback = into[places[-1]] if rest_token else -torch.ones_like(into[0])
    held = torch.where(best > -torch.inf, into[centres[holder]], fallback)
    into[rest] = torch.where(into[rest] < 0, held, into[rest])
    mixed = (weights @ tokens.features[rest].float()).to(tokens.features.dtype)
    rows = tokens.embeddings[index].index_copy(0, into[places], tokens.projector(mixed).to(tokens.embeddings.dtype))
    return Selection(index, len(tokens), merged=rows, into=into)
