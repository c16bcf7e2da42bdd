"""DivPrune: the set of tokens whose nearest two are farthest apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zooprune.pruners.base import Pruner
from zooprune.pruners.centring import Centring
from zooprune.selection.greedy import picks_and_cosines
from zooprune.selection.isolation import most_isolated
from zooprune.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class DivPrune(Centring, Pruner):
    """Keep tokens such that the smallest distance between two kept tokens is large (max-min diversity).

    The distance is 1 minus the cosine of two embeddings. The first token is the one whose nearest other token is
    farthest. Each further token is the farthest from those kept, by its smallest distance to them.

    Source: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", arXiv 2503.02175, CVPR 2025,
    Section 3. The paper's budget on LLaVA-1.5 is a share of 0.098. The released code works in float16 and may pick a
    token again once every token left is a copy of a kept one, so that fewer tokens are kept than asked for. Here
    decisions are made in float32, and no token is picked twice. The released code rounds halves of a share to even;
    here `keep` is rounded as for all methods. For LLaVA-NeXT the released code selects among all tiles of an image
    together; here the scope decides.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    centred, distinctive : bool
        The options of Cen-Prune, arXiv 2608.30263: subtract the mean of all tokens before they are compared, and
        multiply a token's weight by how much it differs from all others; see `zooprune.pruners.centring.Centring`. Both
        together are its form for DivPrune.

    Notes
    -----
        first = argmax_i min_{j ≠ i} d_ij
        next  = argmax_i min_{j ∈ K} d_ij
        d_ij  = 1 − cos(z_i, z_j)

        z_i: embedding of token i; K: tokens kept so far
    """

    name: ClassVar[str] = "divprune"
    source: ClassVar[str] = "DivPrune, arXiv 2503.02175"

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return ones: all tokens are worth the same."""
        return torch.ones(len(tokens), dtype=torch.float32, device=tokens.features.device)

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Selection:
        """Pick greedily by distance."""
        worth, compared = self.weighted(scores, tokens.embeddings), self.compared(tokens.embeddings)
        first = most_isolated(compared, worth)
        return self.chosen(tokens, *picks_and_cosines(compared, worth, keep, first=first))
