"""VFlowOpt: its stage in front of the language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zooprune.averaging import averages
from zooprune.precision import exact_float32
from zooprune.pruners.base import Pruner
from zooprune.selection.merging import own_places
from zooprune.tokens import Selection, VisualTokens


@dataclass(frozen=True)
class VFlowOpt(Pruner):
    """Keep the tokens that central tokens attend to, and merge the others cell by cell.

    Central tokens are those that receive many times the mean attention in the vision tower. The importance of a token
    is the attention that central tokens pay to it. The most important tokens are kept. The others are grouped by the
    cells of a square grid, and each group is merged into its mean, weighted by importance, in the place of its most
    important token. The paper calls this recycling. Kept and merged tokens together fill the budget. Merging happens
    behind the projector.

    This is the method's stage in front of the language model. Published figures include its further stages inside the
    language model, whose ratios are found by calibration. The paper adds the entropy of a patch's pixels to its
    importance. The released configurations weigh this term with zero, and it is left out here.

    Source: "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided Optimization",
    arXiv 2508.05211, ICCV 2025. The released code estimates the number of merged tokens from the size of a cell, and
    misses its budget by a few tokens. Here the budget is met. Where it has no room for all cells, nothing is merged.

    Parameters
    ----------
    keep : int or float
        Tokens per image, or a share of them, merged tokens included.
    threshold : float
        Central tokens receive more than this many times the mean attention. If there are none, all tokens count as
        central. Published for LLaVA-OneVision: 28.68, 34.76 and 39.26 for 50, 25 and 10 % of the tokens.
    cell : float
        The side of a cell in tokens. Published for the same shares: 11.76, 15.58 and 17.39. For other models,
        `zooprune tune` searches both.

    Notes
    -----
        score_i = mean_{q ∈ C} A(q, i),  C = {q : r_q > threshold · mean r}
        z'_c    = Σ_i score_i z_i / Σ_i score_i, over the tokens i that cell c merges

        A(q, i): attention of token q to token i in the vision tower, mean of heads
        r_q: mean attention that token q receives; C: central tokens
        z_i: embedding of token i; its cell is (⌊row / cell⌋, ⌊column / cell⌋)
    """

    name: ClassVar[str] = "vflowopt"
    source: ClassVar[str] = "VFlowOpt, arXiv 2508.05211, stage 0"
    scores_label: ClassVar[str] = "attention of central tokens"
    tunable: ClassVar[Mapping[str, tuple[float, float]]] = {"threshold": (1, 100), "cell": (1, 27)}
    merges: ClassVar[bool] = True

    threshold: float = 39.26
    cell: float = 17.39

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold", "cell"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, not {type(value).__name__}")
            if not 1 <= value < 1e6:
                raise ValueError(f"{name}={value} must be at least 1 and below a million")

    def reads(self) -> tuple[str, ...]:
        """Return the attention of central tokens, as the threshold defines them."""
        return (f"tower_context@{float(self.threshold)}",)

    def score(self, tokens: VisualTokens) -> Tensor:
        """Return the importance of each token."""
        return tokens.signals[self.reads()[0]][:, 0]

    @exact_float32()
    def choose(self, scores: Tensor, tokens: VisualTokens, keep: int) -> Selection:
        """Keep the most important tokens, and merge the others of each cell."""
        total, device = len(tokens), scores.device
        order = scores.sort(descending=True, stable=True).indices
        if keep == total:
            everything = torch.arange(total, device=device)
            return Selection(everything, total, into=everything)
        corners = torch.cat([tokens.positions[:, :2], (tokens.positions[:, 2:] / self.cell).floor().long()], dim=1)
        cells = corners.unique(dim=0, return_inverse=True)[1]
        merging = _places_for_cells(cells[order], keep)
        kept, low = order[: keep - merging], order[keep - merging :]
        if not merging:
            index = kept.sort().values
            return Selection(index, total, into=own_places(index, total))
        leaders = low[_first_of_each(cells[low], total)]
        index = torch.cat([kept, leaders]).sort().values
        into = own_places(index, total)
        place_of = torch.empty_like(cells)
        place_of[cells[leaders]] = into[leaders]
        into[low] = place_of[cells[low]]
        merged = averages(tokens.embeddings, into, keep, weights=scores)
        return Selection(index, total, merged=merged.to(tokens.embeddings.dtype), into=into)


def _first_of_each(cells: Tensor, count: int) -> Tensor:
    """Return where each cell comes first in a list of cells, of which there are fewer than `count` or as many."""
    places = torch.arange(len(cells), device=cells.device)
    first = torch.full((count,), len(cells), device=cells.device).scatter_reduce(0, cells, places, "amin")
    return first[first < len(cells)]


def _places_for_cells(cells: Tensor, keep: int) -> int:
    """Return how many places of the budget merged tokens get, given the cell of each token by falling importance.

    With each further place for merged tokens, a further token is to be merged, which adds a cell or none. The answer is
    the first number of places that equals the number of cells, or zero if there is none.
    """
    total = len(cells)
    begins = torch.zeros_like(cells)
    begins[_first_of_each(cells.flip(0), total)] = 1
    found = begins.cumsum(0)[total - keep - 1 :]
    return int((found == torch.arange(keep + 1, device=cells.device)).int().argmax())
