"""G-Prune: importance that flows along a graph of similar tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class GPrune(Pruner):
    """Keep the tokens that importance flows to, along a graph whose edges join similar tokens.

    Tokens are joined where their cosine reaches a threshold, themselves included. The importance of a token begins as
    the length of its embedding. In each round it passes its importance on to the tokens it is joined with, in shares
    that are the softmax of the cosines. In the end, importance is divided by the number of a token's edges, so that
    large uniform regions do not win by their size. The tokens of most importance are kept.

    Source: "What Kind of Visual Tokens Do We Need? Training-free Visual Token Pruning for Multi-modal Large Language
    Models from the Perspective of Graph", arXiv 2501.02268, AAAI 2025; threshold, temperature and rounds as in
    UniPruneBench, arXiv 2511.02650, which treats the tiles of an image apart from its overview. Here the policy says
    what shares a budget.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    threshold : float
        The least cosine of two tokens that are joined, in [0, 1).
    temperature : float
        The temperature of the softmax, positive.
    rounds : int
        How often importance is passed on.

    Notes
    -----
        v_j     ← Σ_i S_ij v_i, repeated rounds times, from v_j = ‖z_j‖
        S_ij    = softmax_j(cos(z_i, z_j) / temperature) where the cosine ≥ threshold
        score_i = v_i / n_i

        z_i: embedding of token i; S_ij: share of its importance that i passes on to j
        v_i: importance; n_i: number of tokens that i is joined with, itself included
    """

    name: ClassVar[str] = "gprune"
    source: ClassVar[str] = "G-Prune, arXiv 2501.02268"
    scores_label: ClassVar[str] = "importance"

    threshold: float = 0.5
    temperature: float = 0.03
    rounds: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold", "temperature"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold} is not a cosine in [0, 1); 0.5 is usual")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be positive and finite; 0.03 is usual")
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise ValueError(f"rounds={self.rounds!r} must be an int of at least 1")

    @exact_float32()
    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the importance of each token after the last round."""
        wide = tokens.embeddings.float()
        unit = F.normalize(wide, dim=-1)
        cosines = unit @ unit.T
        joined = cosines >= self.threshold
        # A token is joined with itself even where its embedding is zero.
        joined.fill_diagonal_(True)
        shares = torch.softmax((cosines / self.temperature).masked_fill(~joined, -torch.inf), dim=1)
        importance = torch.linalg.vector_norm(wide, dim=-1)
        for _ in range(self.rounds):
            importance = shares.T @ importance
        return importance / joined.sum(1)
