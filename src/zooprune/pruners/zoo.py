"""ZOO-Prune: sensitivity times diversity."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args
from weakref import WeakSet

import torch
from torch import Tensor, nn

from zooprune import sensitivity
from zooprune.profiling import note
from zooprune.projectors import Projector, Sensitivity
from zooprune.pruners.base import Pruner
from zooprune.pruners.centring import Centring
from zooprune.selection import rescale
from zooprune.selection.greedy import Fusion, picks_and_cosines
from zooprune.sensitivity.jacobian import form_of
from zooprune.sensitivity.running import is_differentiable, runner_of
from zooprune.sensitivity.weight_cache import unchanged
from zooprune.tokens import Selection, VisualTokens

Estimator = Literal["auto", "closed_form", "jvp", "finite_difference"]

_warned: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class ZooPrune(Centring, Pruner):
    """Keep tokens to which the projector's output is sensitive, and that differ from each other.

    Source: "ZOO-Prune: Training-Free Token Pruning via Zeroth-Order Gradient Estimation in Vision-Language Models",
    arXiv 2509.24837, CVPR 2026.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them.
    estimator : {"auto", "closed_form", "jvp", "finite_difference"}
        How to measure sensitivity. "auto" takes the cheapest estimator that ranks tokens like the exact one: the closed
        form for two-layer projectors, with or without a norm in front, directional derivatives for other projectors,
        and finite differences for those that cannot be differentiated, for instance because they quantise activations.
        The paper uses "finite_difference". Where the projector is linear, all tokens are equally sensitive: a warning
        says so once, and every score is 1.
    directions : int
        Unit directions that the two sampled estimators draw (m in the paper).
    step : float
        Step of the finite differences (h in the paper).
    rank : int, optional
        Makes sensitivity cheaper. For the closed form: the number of columns that are kept beside the diagonal of the
        matrix G; see `zooprune.sensitivity.closed_form`. For the sampled estimators: the rank to which both linear
        layers are cut, if the projector is two layers with an activation between them and nothing else. Other
        projectors refuse it, and it has no effect on linear projectors. None cuts nothing; with "auto", the closed form
        is then computed in the cheapest way that ranks tokens like the full one (see
        `zooprune.sensitivity.jacobian.form_of`).
    seed : int
        Seed of the directions, the same for every image.
    fusion : {"product", "sum"}
        "sum" is the paper's ablation (Table 4).
    centred, distinctive : bool
        The options of Cen-Prune, arXiv 2608.30263: subtract the mean of all tokens before they are compared, and
        multiply a token's weight by how much it differs from all others; see `zooprune.pruners.centring.Centring`. Both
        together are its form for ZOO-Prune.

    Notes
    -----
        next = argmax_i s'_i · (1 − max_{j ∈ K} cos(z_i, z_j))   (Eq. 6-7, Algorithm 1)
        s_i  = mean_u ‖M(x_i + h u) − M(x_i − h u)‖ / 2h         (Eq. 2-4)
        s_i  = √(mean_u ‖J_i u‖²), over all u                    ("closed_form")
        s_i  = mean_u ‖J_i u‖                                    ("jvp")

        s'_i: sensitivity s_i scaled to [0, 1]; K: tokens kept so far, at first the one
              of largest s_i; x_i, z_i: token i before and after the projector M
        u: random directions of length 1; h: a small step; J_i: Jacobian of M at x_i
    """

    name: ClassVar[str] = "zoo"
    source: ClassVar[str] = "ZOO-Prune, arXiv 2509.24837"
    scores_label: ClassVar[str] = "sensitivity"

    estimator: Estimator = "auto"
    directions: int = 64
    step: float = 0.01
    rank: int | None = None
    seed: int = 0
    fusion: Fusion = "product"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("estimator", Estimator), ("fusion", Fusion)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(get_args(allowed))}")
        for name, least in (("directions", 1), ("rank", 1), ("seed", 0)):
            value = getattr(self, name)
            if name == "rank" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} must be an int of at least {least}")
        if isinstance(self.step, bool) or not isinstance(self.step, (int, float)) or not 0 < self.step < float("inf"):
            raise ValueError(f"step={self.step!r} must be a positive and finite number; the paper uses 0.01")

    def draws(self, sensitivity: Sensitivity) -> bool:
        """Return whether its choice depends on a seed: "auto" draws directions where there is no closed form."""
        if self.estimator == "auto":
            return sensitivity == "sampled"
        return self.estimator != "closed_form" and sensitivity != "linear"

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the sensitivity of each token."""
        with unchanged():
            return self._sensitivity(tokens)

    def _sensitivity(self, tokens: VisualTokens) -> Tensor:
        projector, features = tokens.projector, tokens.features
        if sensitivity.is_linear(projector, features):
            _warn_linear(projector)
            return torch.ones(len(tokens), dtype=torch.float32, device=features.device)
        estimator, rank = self.estimator, self.rank
        if estimator == "auto":
            estimator = _cheapest(projector, features.shape[-1])
        if estimator == "closed_form":
            free = self.estimator == "auto" and rank is None
            return self._closed_form(tokens, "auto" if free else rank)
        note(
            "sensitivity", "sampled" if runner_of(projector, features.shape[-1]).exact else "sampled as the module runs"
        )
        if estimator == "jvp":
            return sensitivity.jvp(projector, features, directions=self.directions, seed=self.seed, rank=rank)
        return sensitivity.finite_difference(
            projector, features, directions=self.directions, step=self.step, seed=self.seed, rank=rank
        )

    def _closed_form(self, tokens: VisualTokens, rank: int | Literal["auto"] | None) -> Tensor:
        found = sensitivity.closed_form(
            tokens.projector, tokens.features, rank=rank, hidden=tokens.signals.get("first_layer")
        )
        assert isinstance(tokens.projector, nn.Module)
        form = form_of(tokens.projector, rank)
        note("closed_form", ", ".join([form.name, *form.origins]))
        note("rank_correlation", form.correlation)
        return found

    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Tensor | Selection:
        """Pick greedily, on the embeddings the language model would read."""
        worth = self.weighted(rescale(scores), tokens.embeddings) if self.distinctive else scores
        picks = picks_and_cosines(self.compared(tokens.embeddings), worth, keep, fusion=self.fusion)
        return self.chosen(tokens, *picks)


def _cheapest(projector: Projector, width: int) -> Estimator:
    if sensitivity.has_closed_form(projector):
        return "closed_form"
    return "jvp" if is_differentiable(projector, width) else "finite_difference"


def _warn_linear(projector: object) -> None:
    if isinstance(projector, nn.Module):
        if projector in _warned:
            return
        _warned.add(projector)
    warnings.warn(
        "this projector is linear, so every token is equally sensitive and only diversity decides",
        UserWarning,
        stacklevel=3,
    )
