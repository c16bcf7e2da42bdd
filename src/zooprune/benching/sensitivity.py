"""What it costs to score the tokens of an image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zooprune import sensitivity
from zooprune.benching.measuring import time_in_turn
from zooprune.benching.paper import finite_differences
from zooprune.benching.shapes import shape_of
from zooprune.projectors import NormedMLP
from zooprune.sensitivity.jacobian import form_of, rank_correlation

#: Rank of the low-rank row.
RANK = 64


def rows(
    shape: str, *, tokens: tuple[int, ...] | None = None, repeats: int = 5, device: str = "cpu", sampled: bool = True
) -> list[dict[str, Any]]:
    """Compare the estimators on one projector and its random features.

    Parameters
    ----------
    shape : str
        A name of `zooprune.benching.shapes.SHAPES`.
    tokens : tuple of int, optional
        How many; as many as an image of the shape has when left out.
    repeats : int
    device : str
    sampled : bool
        Whether the estimators that perturb or differentiate along many directions run too, at the first number of
        tokens; they take a hundred times longer than the others.

    Returns
    -------
    list of dict
        The rows of `time_in_turn`, with the `rank_correlation` of the scores with those of the closed form, whole in
        float32; `auto`, how the cheapest closed form is worked out, and `auto_on_probes`, what it reached when it was
        made.
    """
    known = shape_of(shape)
    half = known.projector().to(device, torch.bfloat16)
    # The very same values in float32, so that all rows score one projector.
    whole = copy.deepcopy(half).float()
    form = form_of(whole, "auto")
    found = []
    for place, count in enumerate(tokens or (known.tokens,)):
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(count, known.d_vision, generator=generator).to(device, torch.bfloat16)
        scores: dict[str, Tensor] = {}
        estimators = _closed_forms(whole, half, features)
        if sampled and place == 0:
            estimators = _sampled(whole, half, features) | estimators
        mine = time_in_turn(
            {name: _keeping(scores, name, score) for name, score in estimators.items()},
            repeats=repeats, device=device, shape=shape, tokens=count, auto=form.name, auto_on_probes=form.correlation,
        )  # fmt: skip
        for row in mine:
            row["rank_correlation"] = rank_correlation(scores[row["provider"]], scores["closed form"])
        found += mine
    return found


def _sampled(whole: nn.Module, half: nn.Module, features: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {
        "finite differences, float32": lambda: finite_differences(whole, features.float()),
        "finite differences, bfloat16": lambda: finite_differences(half, features),
        "derivatives, 64 directions": lambda: sensitivity.jvp(whole, features, directions=64),
        "derivatives, 8 directions": lambda: sensitivity.jvp(whole, features, directions=8),
    }


def _closed_forms(whole: nn.Module, half: nn.Module, features: Tensor) -> dict[str, Callable[[], Tensor]]:
    forms = {
        "closed form": lambda: sensitivity.closed_form(whole, features),
        f"closed form, rank {RANK}": lambda: sensitivity.closed_form(whole, features, rank=RANK),
        "closed form, auto": lambda: sensitivity.closed_form(whole, features, rank="auto"),
        "closed form, auto, bfloat16": lambda: sensitivity.closed_form(half, features, rank="auto"),
    }
    if isinstance(half, NormedMLP):
        return forms
    hidden = half[0](features)  # type: ignore[index]
    shared = {
        "the same, first layer shared": lambda: sensitivity.closed_form(half, features, rank="auto", hidden=hidden)
    }
    return forms | shared


def _keeping(scores: dict[str, Tensor], name: str, score: Callable[[], Tensor]) -> Callable[[], object]:
    return lambda: scores.update({name: score()})
