"""What a pruning method is: a frozen configuration with one method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zooprune.profiling import stage
from zooprune.tokens import Budget, Selection, VisualTokens


@dataclass(frozen=True)
class Pruner:
    """Base of all methods. The instance is the configuration.

    A method writes `score` when the kept tokens are simply the highest scoring ones, `choose` as well when the
    picks depend on each other, or `select` when neither shape fits.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them in (0, 1]; see `zooprune.tokens.Budget`.
    """

    #: The name the method goes by in the registry, the command line and the tables.
    name: ClassVar[str]
    #: Where it was published.
    source: ClassVar[str]

    keep: int | float = 64

    def __post_init__(self) -> None:
        Budget(self.keep)

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return what each token is worth: float32, (N,). Higher is kept longer."""
        raise NotImplementedError(f"{type(self).__name__} defines neither score() nor select()")

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor:
        """Return the indices to keep, (keep,), in any order. Ties go to the lowest index."""
        return torch.sort(scores, descending=True, stable=True).indices[:keep]

    def select(self, tokens: VisualTokens) -> Selection:
        """Return which tokens of one image stay."""
        keep = Budget(self.keep).count(len(tokens))
        with torch.no_grad():
            with stage("score", tokens.features.device):
                scores = self.score(tokens).float()
            with stage("select", tokens.features.device):
                # Read once here, so that nothing that looks at the index later has to wait for the device.
                index = self.choose(scores, tokens, keep).sort().values.cpu()
        return Selection(index, len(tokens), scores)
