"""ToMe: merge tokens that are alike, in front of the projector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from zooprune.averaging import averages
from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.merging import bipartite_merge
from zooprune.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class ToMe(Pruner):
    """Merge the tokens whose keys are most alike, until the budget is met.

    Tokens are merged in rounds of bipartite soft matching. Tokens are split alternately into two sets, every token of
    the first set is matched with the token of the second set whose key has the highest cosine, and the best matches are
    merged. A merged token is the mean of the features of all tokens that it holds. It takes the place of its token of
    the second set.

    Source: "Token Merging: Your ViT But Faster", arXiv 2210.09461, ICLR 2023, Section 3. The paper merges in every
    layer of the vision tower, and weighs attention by the size of tokens. Here all rounds follow the tower, which stays
    as it is, and no attention is weighed. Keys are those of the layer whose output the projector reads. The released
    code reorders tokens in each round; here they keep their order.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    per_round : int, optional
        How many tokens a round removes, r in the paper. None removes as many as possible, which is half of them.

    Notes
    -----
        match(i) = argmax_{j ∈ B} cos(k_i, k_j) for i ∈ A
        y_j      = mean of x_i over all tokens i that j holds

        A, B: every other token; in a round the pairs of highest cosine are merged
        k_i: key of token i, the mean of keys once it holds several; x_i: its features
        y_j: features that the projector reads
    """

    name: ClassVar[str] = "tome"
    source: ClassVar[str] = "ToMe, arXiv 2210.09461"
    needs: ClassVar[tuple[str, ...]] = ("tower_keys",)
    scores_label: ClassVar[str] = "distance to the nearest key"
    merges: ClassVar[bool] = True

    per_round: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_round is None:
            return
        if isinstance(self.per_round, bool) or not isinstance(self.per_round, int):
            raise TypeError(f"per_round must be an int or None, not {type(self.per_round).__name__}")
        if self.per_round < 1:
            raise ValueError(f"per_round={self.per_round} must be at least 1; the paper uses 8 to 16")

    @exact_float32()
    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the least cosine distance of each token's key to another key, for pictures."""
        unit = F.normalize(tokens.signals["tower_keys"].float(), dim=-1)
        cosines = (unit @ unit.T).fill_diagonal_(-1.0)
        return 1 - cosines.amax(1)

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Selection:
        """Merge in rounds, and project what has changed."""
        holder = bipartite_merge(tokens.signals["tower_keys"], keep, per_round=self.per_round)
        index, into = holder.unique(return_inverse=True)
        if keep == len(tokens):
            return Selection(index, len(tokens), into=into)
        changed = into.bincount(minlength=keep) > 1
        merged = tokens.embeddings[index]
        mixed = averages(tokens.features, into, keep)[changed].to(tokens.features.dtype)
        merged[changed] = tokens.projector(mixed).to(merged.dtype)
        return Selection(index, len(tokens), merged=merged, into=into)
