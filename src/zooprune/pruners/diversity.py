"""The paper's ablation without sensitivity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zooprune.pruners.base import Pruner
from zooprune.pruners.centring import Centring
from zooprune.selection.greedy import picks_and_cosines
from zooprune.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class DiversityOnly(Centring, Pruner):
    """Keep tokens that differ from each other; all tokens have the same weight.

    The greedy selection of ZOO-Prune with constant weights: the first token is number 0, and each further token is the
    farthest from those kept. The paper's ablation (Table 4) uses DivPrune for this row, which starts from another
    token.

    Source: arXiv 2509.24837, Eq. 6 and Table 4.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    centred, distinctive : bool
        The options of Cen-Prune, arXiv 2608.30263: subtract the mean of all tokens before they are compared, and
        multiply a token's weight by how much it differs from all others; see `zooprune.pruners.centring.Centring`.

    Notes
    -----
        next = argmax_i 1 − max_{j ∈ K} cos(z_i, z_j)   (Eq. 6)

        z_i: embedding of token i; K: tokens kept so far
    """

    name: ClassVar[str] = "diversity"
    source: ClassVar[str] = "ablation of ZOO-Prune, Eq. 6"

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return ones."""
        return torch.ones(len(tokens), dtype=torch.float32, device=tokens.features.device)

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Selection:
        """Pick greedily by distance."""
        worth = self.weighted(scores, tokens.embeddings)
        return self.chosen(tokens, *picks_and_cosines(self.compared(tokens.embeddings), worth, keep))
