"""G-Prune against its rule in float64, with the power of the matrix that the released code takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zooprune.pruners import get_pruner
from zooprune.tokens import VisualTokens


def tokens_of(embeddings):
    positions = torch.zeros(len(embeddings), 4, dtype=torch.int64)
    positions[:, 3] = torch.arange(len(embeddings))
    return VisualTokens(embeddings, embeddings, nn.Identity(), positions)


def drawn(total, seed, width=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(total, width, generator=generator) + torch.randn(width, generator=generator)


def by_power(embeddings, threshold, temperature, rounds):
    wide = embeddings.double()
    unit = wide / wide.norm(dim=-1, keepdim=True)
    total = len(wide)
    passed_on, edges = torch.zeros(total, total, dtype=torch.float64), torch.zeros(total, dtype=torch.float64)
    for row in range(total):
        near = [column for column in range(total) if column == row or float(unit[row] @ unit[column]) >= threshold]
        weights = torch.tensor([float(unit[row] @ unit[column]) / temperature for column in near], dtype=torch.float64)
        passed_on[row, near], edges[row] = (weights - weights.max()).exp(), len(near)
        passed_on[row] /= passed_on[row].sum()
    return (wide.norm(dim=-1) @ torch.linalg.matrix_power(passed_on, rounds)) / edges


@given(st.integers(2, 24), st.integers(0, 99), st.integers(1, 5))
def test_the_rule(total, seed, rounds):
    embeddings = drawn(total, seed)
    pruner = get_pruner("gprune", keep=1, rounds=rounds)
    expected = by_power(embeddings, 0.5, 0.03, rounds)
    torch.testing.assert_close(pruner.score(tokens_of(embeddings)).double(), expected, rtol=1e-3, atol=1e-5)


@given(st.integers(2, 24), st.integers(0, 99))
def test_permuted_tokens_are_kept_alike(total, seed):
    embeddings, order = drawn(total, seed), torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    pruner = get_pruner("gprune", keep=1)
    score = pruner.score(tokens_of(embeddings))
    torch.testing.assert_close(pruner.score(tokens_of(embeddings[order])), score[order], rtol=1e-4, atol=1e-6)


def test_a_region_does_not_win_by_its_size():
    """Copies pass importance to each other and divide it by their number; a token by itself keeps all of it."""
    alike = torch.tensor([[1.0, 0.0]]).expand(8, 2)
    alone = torch.tensor([[0.0, 1.0]])
    score = get_pruner("gprune", keep=1).score(tokens_of(torch.cat([alike, alone])))
    torch.testing.assert_close(score, torch.tensor([1 / 8] * 8 + [1.0]))


def test_zero_embeddings_are_least_important():
    score = get_pruner("gprune", keep=2).score(tokens_of(torch.cat([torch.zeros(2, 3), torch.eye(3)])))
    assert score.tolist() == pytest.approx([0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": 1.0}, "cosine"), ({"temperature": 0.0}, "positive"), ({"rounds": 0}, "at least 1")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        get_pruner("gprune", keep=4, **options)
