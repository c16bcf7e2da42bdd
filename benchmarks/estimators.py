"""How well do the estimators agree, and what do they cost, at LLaVA-1.5's shapes with random weights?

    python benchmarks/estimators.py [--repeats 5]

The reference is the paper's estimator in float32 with 64 directions; every time is a median beside it in one process.
Rank correlations depend on how far the tokens' sensitivities lie apart at all, so that spread is written down as well.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from environment import write
from zooprune import sensitivity

TOKENS, VISION, TEXT = 576, 1024, 4096


def spearman(one: Tensor, other: Tensor) -> float:
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


def half_precision(projector: nn.Module, features: Tensor) -> Tensor:
    """The paper's estimator wholly in bfloat16, as a model's own dtype would have it."""
    units = sensitivity._unit_directions(64, features, 1).to(torch.bfloat16)
    moved = torch.zeros(len(features))
    for unit in units:
        moved += (projector(features + 0.01 * unit) - projector(features - 0.01 * unit)).float().norm(dim=-1)
    return moved / (0.02 * len(units))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    projector = nn.Sequential(nn.Linear(VISION, TEXT), nn.GELU(), nn.Linear(TEXT, TEXT)).requires_grad_(False)
    # bfloat16 values, so that every row scores the very same projector and features, whatever it holds them in.
    half = copy.deepcopy(projector).to(torch.bfloat16)
    projector.load_state_dict(half.state_dict())
    half_features = torch.randn(TOKENS, VISION).to(torch.bfloat16)
    features = half_features.float()
    rows: dict[str, Callable[[], Tensor]] = {
        "finite differences, m=64": lambda: sensitivity.finite_difference(projector, features),
        "the same, other draw": lambda: sensitivity.finite_difference(projector, features, seed=1),
        "the same in bfloat16": lambda: half_precision(half, half_features),
        "directional derivatives, m=64": lambda: sensitivity.jvp(projector, features),
        "closed form": lambda: sensitivity.closed_form(projector, features),
        "closed form, rank 64": lambda: sensitivity.closed_form(projector, features, rank=64),
        "closed form, bfloat16 model": lambda: sensitivity.closed_form(half, half_features),
        "closed form, bfloat16 model, rank 64": lambda: sensitivity.closed_form(half, half_features, rank=64),
    }
    results = {}
    for name in rows:
        if name.startswith("closed form"):
            rows[name]()  # Fills the cache that it keeps per projector.
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(repeats):
        for name, estimate in rows.items():
            began = time.perf_counter()
            results[name] = estimate()
            times[name].append(time.perf_counter() - began)
    first = next(iter(rows))
    table = Table("estimator", "rank correlation", "mean relative difference", "times faster")
    figures = []
    for name in rows:
        correlation = spearman(results[name], results[first])
        difference = float((results[name] / results[first] - 1).abs().mean())
        # Paired within each round, so that a slow moment of the machine weighs on both.
        faster = statistics.median(a / b for a, b in zip(times[first], times[name], strict=True))
        table.add_row(name, f"{correlation:.6f}", f"{difference:.4f}", f"{faster:.1f}")
        figures.append(
            {"estimator": name, "spearman": correlation, "difference": difference, "times_faster": faster}
            | {"seconds": times[name]}
        )
    Console().print(table)
    exact = results["closed form"]
    spread = float(exact.std() / exact.mean())
    print(f"spread of the sensitivity over the tokens, standard deviation by mean: {spread:.4f}")
    shapes = {
        "tokens": TOKENS,
        "d_vision": VISION,
        "d_hidden": TEXT,
        "d_text": TEXT,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
    }
    print(write("estimators", {"shapes": shapes, "spread": spread, "rows": figures}))


if __name__ == "__main__":
    main()
