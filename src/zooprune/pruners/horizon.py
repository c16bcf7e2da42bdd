"""Random pruning beyond the information horizon: where no token tells more than another, chance is as good a choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from zooprune.policy import PositionPolicy
from zooprune.projectors import Sensitivity
from zooprune.pruners.inside import InsidePruner, check_layers, check_share

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer


@dataclass(frozen=True)
class HorizonRandom(InsidePruner):
    """Keep visual tokens drawn without replacement in front of a deep layer.

    It is meant to follow another method: DivPrune keeps 284 tokens, and this method 38 of them from layer 20 of 32 on,
    which is 192 on average, ``prune(model, DivPrune(keep=284), inside=HorizonRandom(keep=192))``. Tokens that stay are
    numbered anew.

    Source: Wang et al., "When Token Pruning is Worse than Random", arXiv 2512.07580, and its code, which fixes no seed.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves `ratio`.
    layer : int or float
        In front of which layer, counted from 0, or at which share of the depth: layer 20 of 32 in the paper.
    ratio : float
        The share of the visual tokens that stays, where `keep` is None: 38 of 284 in the paper.
    seed : int
        Seed of the draws, the same for every image, so that a batch equals its rows.

    Notes
    -----
        score_i = u_i

        u_i: a number drawn uniformly from [0, 1) with the seed; the highest are kept
    """

    name: ClassVar[str] = "horizon"
    source: ClassVar[str] = "arXiv 2512.07580"
    query_aware: ClassVar[bool] = False
    scores_label: ClassVar[str] = "draw"
    # In front of the horizon chance is no good choice, so it comes earlier only where it must.
    uncut_share: ClassVar[float] = 1.0
    numbering: ClassVar[PositionPolicy] = "contiguous"

    layer: int | float = 0.625
    ratio: float = 38 / 284
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers([self.layer])
        check_share("ratio", self.ratio)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed={self.seed!r} must be an int of at least 0")

    def draws(self, sensitivity: Sensitivity) -> bool:
        """Return True."""
        return True

    def places(self) -> tuple[int | float, ...]:
        """Return the one layer."""
        return (self.layer,)

    def shares(self, share: float | None, stages: int) -> tuple[float, ...]:
        """Return what is left from the layer on."""
        return (self.ratio if share is None else share,)

    def score_at(self, layer: Layer) -> Tensor:
        """Return uniform draws, made on the CPU so that they are the same on every device."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand(layer.entered, generator=generator, dtype=torch.float32, device="cpu")
        return drawn.to(layer.index.device)[layer.index]
