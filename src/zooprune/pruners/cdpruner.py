"""CDPruner: diversity among tokens, weighted by the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.pruners.centring import Centring
from zooprune.selection.dpp import greedy_map
from zooprune.tokens import VisualTokens


@dataclass(frozen=True)
class CDPruner(Centring, Pruner):
    """Keep a set of tokens that is diverse given the question: a determinantal point process over both.

    With r the relevance of each token and c the cosines between embeddings, the kernel is r_i c_ij r_j, and each step
    picks the token with which the determinant is largest. Relevance is minus the mean cosine to the question, rescaled
    to [0, 1] over the image: the published sign, which favours tokens that differ from the text. The paper compares
    image and text in CLIP's shared space. Here both are compared in the language model's embedding space, which every
    model has; published figures were not measured that way.

    Source: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
    arXiv 2506.10967, NeurIPS 2025. The released code rescales over a whole batch, so that images change each other's
    choice; here every image is rescaled by itself.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    centred, distinctive : bool
        The options of Cen-Prune, arXiv 2608.30263: subtract the mean of all tokens before they are compared, and
        multiply a token's weight by how much it differs from all others; see `zooprune.pruners.centring.Centring`. Both
        together are its form for CDPruner, Eq. 8.

    Notes
    -----
        next = argmax_i det L[K ∪ {i}]
        L_ij = r_i · cos(z_i, z_j) · r_j
        r_i  = −mean_q cos(z_i, t_q), scaled to [0, 1]

        L[...]: rows and columns of these tokens; K: tokens kept so far
        r_i: relevance; z_i, t_q: embeddings of visual token i and of text token q
    """

    name: ClassVar[str] = "cdpruner"
    source: ClassVar[str] = "CDPruner, arXiv 2506.10967"
    needs: ClassVar[tuple[str, ...]] = ("question",)
    scores_label: ClassVar[str] = "relevance"
    query_aware: ClassVar[bool] = True

    @exact_float32()
    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the relevance of each token, all ones for a prompt without text."""
        question = tokens.context["question"]
        if not len(question):
            return torch.ones(len(tokens), dtype=torch.float32, device=tokens.embeddings.device)
        unit = F.normalize(tokens.embeddings.float(), dim=-1)
        relevance = -(unit @ F.normalize(question.float(), dim=-1).T).mean(-1)
        low, high = relevance.min(), relevance.max()
        return torch.where(high > low, (relevance - low + 1e-6) / (high - low), 1.0)

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Pick greedily by determinants."""
        worth = self.weighted(scores, tokens.embeddings)
        unit = F.normalize(self.compared(tokens.embeddings).float(), dim=-1) * worth[:, None]
        return greedy_map(unit @ unit.T, keep)
