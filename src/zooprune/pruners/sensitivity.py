"""The paper's ablation without diversity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from zooprune.pruners.base import Pruner
from zooprune.pruners.zoo import ZooPrune
from zooprune.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class SensitivityOnly(ZooPrune):
    """Keep the most sensitive tokens, no matter how similar they are.

    Source: arXiv 2509.24837, Table 4, row "sensitivity". The options are those of `ZooPrune`; `fusion`, `centred`
    and `distinctive` have no effect.

    Notes
    -----
        score_i = mean_u ‖M(x_i + h u) − M(x_i − h u)‖ / 2h   (Eq. 2-4)
        score_i = √(mean_u ‖J_i u‖²), over all u              ("closed_form")
        score_i = mean_u ‖J_i u‖                              ("jvp")

        x_i: token i before the projector M; J_i: Jacobian of M at x_i
        u: random directions of length 1; h: a small step
    """

    name: ClassVar[str] = "sensitivity"
    source: ClassVar[str] = "ablation of ZOO-Prune, Table 4"

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor | Selection:
        """Pick the highest scores."""
        return Pruner.choose(self, scores, tokens, keep)
