"""Merging, against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zooprune.averaging import averages
from zooprune.selection.merging import bipartite_merge, own_places


def rows_of(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 10**6), st.booleans())
def test_averages_are_what_they_say(total, count, seed, weighted):
    generator = torch.Generator().manual_seed(seed)
    rows, into = rows_of(total, 5, seed), torch.randint(-1, count, (total,), generator=generator)
    weights = torch.rand(total, generator=generator) if weighted else torch.ones(total)
    expected = np.zeros((count, 5))
    for place in range(count):
        mine = (into == place).numpy()
        if mine.any():
            expected[place] = np.average(rows[mine].double().numpy(), axis=0, weights=weights[mine].double().numpy())
    found = averages(rows, into, count, weights if weighted else None)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_weights_that_are_all_zero_or_tiny():
    rows, into = torch.tensor([[2.0], [4.0], [8.0], [16.0]]), torch.tensor([0, 0, 1, 1])
    assert averages(rows, into, 2, torch.tensor([0.0, 0.0, 1e-30, 3e-30])).tolist() == [[3.0], [14.0]]


def test_half_precision_is_averaged_in_float32():
    rows, into = rows_of(40, 6, 0).bfloat16(), torch.arange(40) % 3
    assert torch.equal(averages(rows, into, 3), averages(rows.float(), into, 3))


def test_own_places():
    assert own_places(torch.tensor([3, 0]), 5).tolist() == [1, -1, -1, 0, -1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6), st.sampled_from([None, 1, 2, 5]), st.data())
def test_as_many_groups_are_left_as_asked_for(total, seed, per_round, data):
    keep = data.draw(st.integers(1, total + 2))
    holder = bipartite_merge(rows_of(total, 6, seed), keep, per_round=per_round)
    assert len(holder.unique()) == min(keep, total)
    # A token that holds others holds itself.
    assert torch.equal(holder[holder], holder)


def test_a_round_merges_the_best_pairs():
    drawn = torch.eye(6)
    # Tokens 0 and 2 are matched with 1, token 4 with 5; the pairs are ever less alike.
    metric = torch.stack(
        [drawn[0], drawn[0] + 0.1 * drawn[1], drawn[0] + drawn[2], drawn[3], drawn[4], drawn[4] + 2 * drawn[5]]
    )
    assert bipartite_merge(metric, 5).tolist() == [1, 1, 2, 3, 4, 5]
    assert bipartite_merge(metric, 4).tolist() == [1, 1, 1, 3, 4, 5]
    assert bipartite_merge(metric, 3).tolist() == [1, 1, 1, 3, 5, 5]


def test_ties_go_to_the_lowest_index():
    same = torch.ones(7, 3)
    assert bipartite_merge(same, 5).tolist() == [1, 1, 1, 3, 4, 5, 6]
    assert bipartite_merge(same, 1).unique().numel() == 1
    assert len(bipartite_merge(torch.zeros(7, 3), 2).unique()) == 2


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(0, 10**6))
def test_length_and_precision_of_the_metric_do_not_matter(total, seed):
    metric = rows_of(total, 6, seed).bfloat16()
    expected = bipartite_merge(metric, total // 2 + 1)
    assert torch.equal(bipartite_merge(metric.float(), total // 2 + 1), expected)
    # Powers of two change no digit. One round is too few for lengths to weigh in means.
    lengths = 2.0 ** torch.randint(-3, 4, (total, 1), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(bipartite_merge(metric.float() * lengths, total // 2 + 1), expected)


@pytest.mark.parametrize(
    ("metric", "keep", "per_round", "message"),
    [
        (torch.ones(4), 1, None, "must be"),
        (torch.ones(0, 3), 1, None, "must be"),
        (torch.ones(4, 2), 0, None, "keep=0"),
        (torch.ones(4, 2), 1, 0, "per_round=0"),
        (torch.full((4, 2), torch.nan), 1, None, "NaN"),
    ],
)
def test_bad_arguments_are_refused(metric, keep, per_round, message):
    with pytest.raises(ValueError, match=message):
        bipartite_merge(metric, keep, per_round=per_round)
