"""Greedy picks by determinants, against the plain definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zooprune.selection.dpp import greedy_map

GOLDEN = np.load(Path(__file__).parent / "data" / "cdpruner.npz")


def kernel_of(rows, width, seed):
    drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn @ drawn.T


def plain(kernel, keep):
    """Return the picks by their definition: the largest determinant with what is picked, in float64."""
    picked = []
    for _ in range(keep):
        gains = [
            -1.0 if item in picked else float(torch.linalg.det(kernel[[*picked, item]][:, [*picked, item]]))
            for item in range(len(kernel))
        ]
        picked.append(int(np.argmax(gains)))
    return picked


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10**6), st.data())
def test_every_pick_has_the_largest_determinant(rows, seed, data):
    kernel, keep = kernel_of(rows, rows + 3, seed), data.draw(st.integers(1, rows))
    assert greedy_map(kernel, keep).tolist() == plain(kernel, keep)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 10**6))
def test_no_item_is_picked_twice_also_beyond_the_rank(rows, width, seed):
    picked = greedy_map(kernel_of(rows, width, seed), rows)
    assert sorted(picked.tolist()) == list(range(rows))


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 20), st.integers(0, 10**6))
def test_permuting_items_permutes_the_picks(rows, seed):
    kernel = kernel_of(rows, rows + 2, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    again = greedy_map(kernel[order][:, order], rows // 2)
    assert torch.equal(order[again], greedy_map(kernel, rows // 2))


def test_copies_wait_until_all_others_are_picked():
    drawn = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    rows = drawn[[0, 0, 1, 1, 2, 3, 4, 5]]
    picked = greedy_map(rows @ rows.T, 8).tolist()
    assert {0, 2} <= set(picked[:6]) and picked[6:] == [1, 3]


def test_half_precision_is_read_in_float32():
    kernel = kernel_of(20, 30, 0).to(torch.bfloat16)
    assert torch.equal(greedy_map(kernel, 9), greedy_map(kernel.float(), 9))


@pytest.mark.parametrize(
    ("kernel", "keep", "message"),
    [(torch.ones(2, 3), 1, "must be"), (torch.ones(2, 2), 0, "keep=0"), (torch.full((2, 2), torch.nan), 1, "NaN")],
)
def test_bad_arguments_are_refused(kernel, keep, message):
    with pytest.raises(ValueError, match=message):
        greedy_map(kernel, keep)
