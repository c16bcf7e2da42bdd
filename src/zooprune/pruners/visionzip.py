"""VisionZip: the tokens the tower attends to, and the others merged into a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.averaging import averages
from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.merging import own_places
from zooprune.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class VisionZip(Pruner):
    """Keep the tokens that receive most attention in the vision tower, and merge the others into a few more.

    Dominant tokens are those with the most attention from the class token, or from all patches where the tower has no
    class token. Of the others, evenly spaced ones become contextual tokens: every token that is left joins the one
    whose key is nearest, and its features are averaged and added. Merging happens in front of the projector. The
    released code counts the class token among the dominant ones; here a model that does not read it spends its place
    on one more patch.

    Source: "VisionZip: Longer is Better but Not Necessary in Vision Language Models", arXiv 2412.04467, CVPR 2025.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them, dominant and contextual ones together.
    contextual : float
        The share of kept tokens that are contextual, in [0, 1): 10 of 64, as published.

    Notes
    -----
        dominant: the k − n tokens of largest a_i,  n = round(contextual · k)
        y_t = x_t + mean of x_j over the tokens j that join t
        j joins argmax_t cos(k_j, k_t)

        a_i, k_i, x_i: attention received, key and features of token i in the tower
        t: a contextual token, n of them; k: tokens to keep
        y_t: features that the projector reads
    """

    name: ClassVar[str] = "visionzip"
    source: ClassVar[str] = "VisionZip, arXiv 2412.04467"
    needs: ClassVar[tuple[str, ...]] = ("tower_attention", "tower_keys")
    scores_label: ClassVar[str] = "attention received"
    merges: ClassVar[bool] = True

    contextual: float = 10 / 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.contextual, bool) or not isinstance(self.contextual, (int, float)):
            raise TypeError(f"contextual must be a float, not {type(self.contextual).__name__}")
        if not 0 <= self.contextual < 1:
            raise ValueError(f"contextual={self.contextual} is not a share in [0, 1); the paper uses about 0.156")

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives."""
        return tokens.signals["tower_attention"][:, 0]

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Selection:
        """Pick the dominant tokens, space out the contextual ones, and merge the rest into these."""
        contextual = min(round(self.contextual * keep), keep - 1)
        dominant = torch.sort(scores, descending=True, stable=True).indices[: keep - contextual]
        is_rest = torch.ones(len(tokens), dtype=torch.bool, device=scores.device)
        is_rest[dominant] = False
        rest = is_rest.nonzero()[:, 0]
        targets = rest[:: max(1, len(rest) // max(1, contextual))][:contextual]
        index = torch.cat([dominant, targets]).sort().values
        into = own_places(index, len(tokens))
        is_rest[targets] = False
        others = is_rest.nonzero()[:, 0]
        if not contextual or not len(others):
            return Selection(index, len(tokens), into=into)
        keys = F.normalize(tokens.signals["tower_keys"].float(), dim=-1)
        nearest = (keys[others] @ keys[targets].T).argmax(-1)
        into[others] = into[targets[nearest]]
        return Selection(index, len(tokens), merged=self._merged(tokens, index, targets, others, nearest), into=into)

    def _merged(self, tokens: VisualTokens, index: Tensor, targets: Tensor, others: Tensor, nearest: Tensor) -> Tensor:
        """Return what the language model reads, (k, d_text)."""
        mixed = tokens.features[targets].float() + averages(tokens.features[others], nearest, len(targets))
        # Targets that nobody joins stay as they are.
        changed = torch.zeros_like(targets, dtype=torch.bool).index_fill(0, nearest, True)
        merged = tokens.embeddings[index].clone()
        places = torch.searchsorted(index, targets[changed])
        merged[places] = tokens.projector(mixed[changed].to(tokens.features.dtype)).to(merged.dtype)
        return merged
