"""The method as published, without anything done for speed: what the library is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zooprune.pruners import ZooPrune
from zooprune.selection import rescale
from zooprune.tokens import VisualTokens


def finite_differences(projector: nn.Module, features: Tensor, *, directions: int = 64, step: float = 0.01) -> Tensor:
    """Return the paper's estimator wholly in the projector's own dtype, one direction after the other: (N,)."""
    drawn = torch.randn(directions, features.shape[-1], generator=torch.Generator().manual_seed(0))
    units = F.normalize(drawn, dim=-1).to(features.device, features.dtype)
    moved = torch.zeros(len(features), device=features.device)
    with torch.no_grad():
        for unit in units:
            moved += (projector(features + step * unit) - projector(features - step * unit)).float().norm(dim=-1)
    return moved / (2 * step * directions)


def plain_loop(embeddings: Tensor, weights: Tensor, keep: int) -> Tensor:
    """Pick as the released code does: cosines of all pairs by broadcasting, all picks looked at again in every step.

    Parameters
    ----------
    embeddings : Tensor, (N, d)
    weights : Tensor, (N,)
    keep : int

    Returns
    -------
    Tensor of int64, (keep,)
        In the order picked.
    """
    # Row by row: all pairs at once would take N * N * d numbers, 128 GiB for 2,880 tokens of 4,096 values.
    rows = [F.cosine_similarity(row, embeddings, dim=-1) for row in embeddings[:, None]]
    distance = 1 - torch.stack(rows)
    worth = rescale(weights)
    picked = [int(worth.argmax())]
    while len(picked) < keep:
        score = worth * distance[picked].amin(0)
        score[picked] = -torch.inf
        picked.append(int(score.argmax()))
    return torch.tensor(picked, device=embeddings.device)


@dataclass(frozen=True)
class AsPublished(ZooPrune):
    """ZOO-Prune with `finite_differences` and `plain_loop`.

    Source: arXiv 2509.24837 and the code released with it.
    """

    name: ClassVar[str] = "as published"
    source: ClassVar[str] = "ZOO-Prune, arXiv 2509.24837"

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the estimated sensitivity of each token."""
        assert isinstance(tokens.projector, nn.Module)
        return finite_differences(tokens.projector, tokens.features, directions=self.directions, step=self.step)

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick one by one."""
        return plain_loop(tokens.embeddings, scores, keep)
