"""The longest embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zooprune.pruners.base import Pruner
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class Norm(Pruner):
    """Keep the tokens whose embeddings have the largest Euclidean norm.

    The embeddings are what the language model would read, behind the projector. Some vision towers give background
    tokens very large norms (arXiv 2309.16588). Where the projector passes these on, this baseline keeps background.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.

    Notes
    -----
        score_i = ‖z_i‖

        z_i: embedding of token i; ‖·‖: Euclidean norm
    """

    name: ClassVar[str] = "norm"
    source: ClassVar[str] = "baseline"
    scores_label: ClassVar[str] = "norm"

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the norm of each embedding."""
        return tokens.embeddings.float().norm(dim=-1)
