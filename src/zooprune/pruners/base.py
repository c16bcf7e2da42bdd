"""What a pruning method is: a frozen configuration that scores tokens and chooses among them.

A method sees the tokens of one image. It never sees a model, a prompt or a cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from zooprune.profiling import stage
from zooprune.projectors import Sensitivity
from zooprune.tokens import Budget, Selection, VisualTokens

#: Where a method can prune.
Where = Literal["before the language model", "inside the language model"]
#: Chooses so many tokens of an image.
Select = Callable[[int], Selection]


@dataclass(frozen=True)
class Pruner:
    """Base of all methods. The instance is the configuration.

    A method writes `score` when the kept tokens are simply the highest scoring ones, `choose` as well when the
    picks depend on each other or tokens are merged, or `select` when neither shape fits. The class attributes say what
    kind of method it is; tables and tests read them.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them in (0, 1]; see `zooprune.tokens.Budget`.
    """

    #: The name the method goes by in the registry, the command line and the tables.
    name: ClassVar[str]
    #: Where it was published.
    source: ClassVar[str]
    #: Names of the signals it reads beside features and embeddings; see `zooprune.signals`. Where they depend on its
    #: options, it defines `reads` instead.
    needs: ClassVar[tuple[str, ...]] = ()
    #: What its scores are, for legends.
    scores_label: ClassVar[str] = "score"
    #: Whether its choice depends on the question.
    query_aware: ClassVar[bool] = False
    #: Whether it keeps as many tokens as asked for. Where this depends on its options, it defines `is_exact` instead.
    exact: ClassVar[bool] = True
    #: Whether kept tokens become mixtures of several tokens.
    merges: ClassVar[bool] = False
    #: Whether it has weights of its own that were trained.
    trained: ClassVar[bool] = False
    #: Options that depend on the model, and the range of each that is searched; see `zooprune.evaluation.tuning`.
    tunable: ClassVar[Mapping[str, tuple[float, float]]] = {}
    #: Where it prunes.
    where: ClassVar[Where] = "before the language model"
    #: What it is made for. To a method for videos, an image is a video of one frame.
    modalities: ClassVar[tuple[Literal["image", "video"], ...]] = ("image", "video")

    keep: int | float = 64

    def __post_init__(self) -> None:
        Budget(self.keep)

    def reads(self) -> tuple[str, ...]:
        """Return the names of the signals it reads beside features and embeddings."""
        return self.needs

    def is_exact(self) -> bool:
        """Return whether it keeps as many tokens as asked for."""
        return self.exact

    def draws(self, sensitivity: Sensitivity) -> bool:
        """Return whether its choice depends on a seed, given how the projector's sensitivity is found."""
        return False

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return what each token is worth: float32, (N,). Higher is kept longer."""
        raise NotImplementedError(f"{type(self).__name__} defines neither score() nor select()")

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor | Selection:
        """Return the indices to keep, (keep,), in any order, or a whole Selection. Ties go to the lowest index."""
        return torch.sort(scores, descending=True, stable=True).indices[:keep]

    def select(self, tokens: VisualTokens, keep: int) -> Selection:
        """Return which tokens of one image stay.

        Parameters
        ----------
        tokens : VisualTokens
        keep : int
            How many, from 1 to ``len(tokens)``.
        """
        return self.selector(tokens)(keep)

    def selector(self, tokens: VisualTokens) -> Select:
        """Return what selects among these tokens, any number of times; scores are worked out once.

        Raises
        ------
        ValueError
            If the tokens lack a signal that the method needs.
        """
        missing = [name for name in self.reads() if name not in tokens.signals and name not in tokens.context]
        if missing:
            raise ValueError(f"{self.name} reads {missing[0]}, which these tokens lack; see zooprune.signals")
        if type(self).select is not Pruner.select:
            return partial(self.select, tokens)
        with torch.no_grad(), stage("score", tokens.features.device):
            scores = self.score(tokens).float()
        return partial(self._chosen, scores, tokens)

    def _chosen(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Selection:
        with torch.no_grad(), stage("select", tokens.features.device):
            chosen = self.choose(scores, tokens, keep)
            if isinstance(chosen, Selection):
                return dataclasses.replace(chosen, index=chosen.index.cpu(), scores=scores)
            # Read once here, so that nothing that looks at the index later has to wait for the device.
            return Selection(chosen.sort().values.cpu(), len(tokens), scores)
