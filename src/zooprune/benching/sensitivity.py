"""What it costs to score the tokens of an image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zooprune import sensitivity
from zooprune.benching.measuring import compare
from zooprune.benching.paper import finite_differences
from zooprune.benching.shapes import shape_of
from zooprune.jacobian import form_of, rank_correlation
from zooprune.projectors import NormedMLP

#: Rank of the low-rank row.
RANK = 64


def rows(
    shape: str, *, tokens: int | None = None, repeats: int = 5, device: str = "cpu", sampled: bool = True
) -> list[dict[str, Any]]:
    """Compare the estimators on one projector and its random features.

    Parameters
    ----------
    shape : str
        A name of `zooprune.benching.shapes.SHAPES`.
    tokens : int, optional
        How many; as many as an image of the shape has when left out.
    repeats : int
    device : str
    sampled : bool
        Whether the estimators that perturb or differentiate along 64 directions run too, which take a hundred times
        longer than the others.

    Returns
    -------
    list of dict
        The rows of `compare`, with the `rank_correlation` of the scores with those of the closed form, whole and in
        float32; `auto`, how the cheapest closed form is worked out, and `auto_on_probes`, what it reached when it was
        made.
    """
    known = shape_of(shape)
    tokens = tokens or known.tokens
    half = known.projector().to(device, torch.bfloat16)
    # The very same values in float32, so that all rows score one projector.
    whole = copy.deepcopy(half).float()
    generator = torch.Generator().manual_seed(1)
    half_features = torch.randn(tokens, known.d_vision, generator=generator).to(device, torch.bfloat16)
    features = half_features.float()
    providers: dict[str, Callable[[], Tensor]] = {
        "finite differences, float32": lambda: finite_differences(whole, features),
        "finite differences, bfloat16": lambda: finite_differences(half, half_features),
        "derivatives, 64 directions": lambda: sensitivity.jvp(whole, features, directions=64),
    }
    if not sampled:
        providers.clear()
    providers |= {
        "derivatives, 8 directions": lambda: sensitivity.jvp(whole, features, directions=8),
        "closed form": lambda: sensitivity.closed_form(whole, features),
        f"closed form, rank {RANK}": lambda: sensitivity.closed_form(whole, features, rank=RANK),
        "closed form, auto": lambda: sensitivity.closed_form(whole, features, rank="auto"),
        "closed form, auto, bfloat16": lambda: sensitivity.closed_form(half, half_features, rank="auto"),
    }
    if not isinstance(half, NormedMLP):
        hidden = half[0](half_features)  # type: ignore[index]
        providers["the same, first layer shared"] = lambda: sensitivity.closed_form(
            half, half_features, rank="auto", hidden=hidden
        )
    scores: dict[str, Tensor] = {}

    def keeping(name: str, score: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: scores.update({name: score()})

    form = form_of(whole, "auto")
    found = compare(
        {name: keeping(name, score) for name, score in providers.items()},
        repeats=repeats, device=device, shape=shape, tokens=tokens, auto=form.name, auto_on_probes=form.correlation,
    )  # fmt: skip
    for row in found:
        row["rank_correlation"] = rank_correlation(scores[row["provider"]], scores["closed form"])
    return found
