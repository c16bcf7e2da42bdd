"""TOPS: attention, coverage and diversity in one greedy score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.arguments import check_rows
from zooprune.selection.facility import NO_GAIN, coverage_lost
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class TOPS(Pruner):
    """Keep tokens that receive attention, cover the others and differ from each other.

    This is stage 1 of the paper, which prunes in front of the language model. The first token receives the most
    attention from the class token, or from all patches where the tower has no class token. Every further token i has
    the largest r_i + lambda c_i + alpha d_i, each of the three brought to [0, 1] over the tokens that are not kept yet:
    r_i is its attention, c_i is what it adds to the coverage of these tokens, and d_i is 1 minus its largest cosine to
    a kept token. Stage 2, which prunes inside the language model, is not part of this method.

    Source: "TOPS: First-Principles Visual Token Pruning via Constructing Token Optimal Preservation Sets for Efficient
    MLLM Inference", arXiv 2606.27161, Eq. 6-8 and Algorithm 1. There is no released code. Section 4.1 rescales by
    minimum and maximum, Algorithm 1 divides by the mean; here it is Section 4.1.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    diversity : float
        The weight of diversity, alpha in the paper.
    coverage : float
        The weight of coverage, lambda in the paper.

    Notes
    -----
        next = argmax_i r_i + coverage · c_i + diversity · d_i   (Eq. 6-8, Algorithm 1)
        c_i  = Σ_{j ∉ K} max(0, cos(z_i, z_j) − max_{m ∈ K} cos(z_j, z_m))
        d_i  = 1 − max_{j ∈ K} cos(z_i, z_j)

        r_i: attention that token i receives in the vision tower; z_i: its embedding
        K: tokens kept so far; r, c and d are scaled to [0, 1] over the other tokens
    """

    name: ClassVar[str] = "tops"
    source: ClassVar[str] = "TOPS, arXiv 2606.27161"
    needs: ClassVar[tuple[str, ...]] = ("tower_attention",)
    scores_label: ClassVar[str] = "attention received"

    diversity: float = 0.5
    coverage: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("diversity", "coverage"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, not {type(value).__name__}")
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be finite and not negative; the paper uses 0.5")

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the attention each token receives."""
        return tokens.signals["tower_attention"][:, 0]

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick greedily by the sum of the three."""
        check_rows(tokens.embeddings, keep)
        unit = F.normalize(tokens.embeddings.float(), dim=-1)
        cosines = unit @ unit.T
        best = scores.argmax()
        left = torch.ones_like(scores, dtype=torch.bool).index_fill(0, best, False)
        covered = cosines[best]
        # Picked tokens do not count as covered by others any more: infinity takes them out.
        counted = covered.index_fill(0, best, torch.inf)
        gained = coverage_lost(cosines, counted, torch.full_like(counted, torch.inf))
        picked = [best]
        for _ in range(keep - 1):
            # The smallest gain that is one, so what is below it is rounding.
            total = _rescaled(scores, left) + self.coverage * _rescaled(torch.threshold(gained, NO_GAIN, 0.0), left)
            total = total + self.diversity * _rescaled(1 - covered, left)
            best = total.masked_fill(~left, -torch.inf).argmax()
            picked.append(best)
            left = left.index_fill(0, best, False)
            covered = torch.maximum(covered, cosines[best])
            now = covered.masked_fill(~left, torch.inf)
            gained = gained - coverage_lost(cosines, counted, now)
            counted = now
        return torch.stack(picked)


def _rescaled(values: Tensor, left: Tensor) -> Tensor:
    """Bring values to [0, 1] over the tokens that are left; zeros where all are the same."""
    low = values.masked_fill(~left, torch.inf).min()
    span = values.masked_fill(~left, -torch.inf).max() - low
    return torch.where(span > 0, (values - low) / span, 0.0)
