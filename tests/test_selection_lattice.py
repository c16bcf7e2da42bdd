"""Even spreading, by what evenness means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zooprune.families.tiling import grid_positions
from zooprune.selection.lattice import spread


def grid(rows, columns, frames=1, tile=0):
    return grid_positions(rows, columns, frames=frames, tile=tile, device=torch.device("cpu"))


def differ_by_one_at_most(counts):
    return int(counts.max() - counts.min()) <= 1


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.data())
def test_any_number_of_any_shape(rows, columns, frames, data):
    positions = grid(rows, columns, frames)
    keep = data.draw(st.integers(1, len(positions)))
    chosen = spread(positions, keep)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == keep
    counts = positions[chosen, 0].bincount(minlength=frames)
    assert differ_by_one_at_most(counts)
    for frame in range(frames):
        mine = positions[chosen][positions[chosen, 0] == frame]
        used, each = mine[:, 2].unique(return_counts=True)
        if len(used):
            assert differ_by_one_at_most(each)
        if len(used) > 1:
            assert differ_by_one_at_most(used.diff())
        for row in used:
            there = mine[mine[:, 2] == row, 3]
            if len(there) > 1:
                assert differ_by_one_at_most(there.diff())


@pytest.mark.parametrize(
    "rows, columns, keep, expected_rows, expected_columns",
    [
        (24, 24, 64, range(1, 24, 3), range(1, 24, 3)),
        (24, 24, 144, range(1, 24, 2), range(1, 24, 2)),
        (9, 9, 9, (1, 4, 7), (1, 4, 7)),
        (6, 18, 3, (3,), (3, 9, 15)),
        (18, 6, 3, (3, 9, 15), (3,)),
        (5, 7, 1, (2,), (3,)),
    ],
)
def test_lattices_are_square_and_in_the_middle(rows, columns, keep, expected_rows, expected_columns):
    positions = grid(rows, columns)
    chosen = positions[spread(positions, keep)]
    assert chosen[:, 2:].tolist() == [[row, column] for row in expected_rows for column in expected_columns]


@pytest.mark.parametrize("rows, columns", [(15, 15), (9, 21), (21, 9)])
@pytest.mark.parametrize("keep", range(1, 130, 8))
def test_no_side_is_favoured(rows, columns, keep):
    """The mean place of what is kept is the middle of the image, to less than a place."""
    positions = grid(rows, columns)
    mean = positions[spread(positions, keep)].float().mean(0)
    assert abs(mean[2] - (rows - 1) / 2) < 0.75
    assert abs(mean[3] - (columns - 1) / 2) < 0.75


def test_every_token_is_near_a_kept_one():
    """No token is farther away than the corner of a square that has room for one kept token, but for rounding."""
    positions = grid(24, 24)
    places = positions[:, 2:].float()
    for keep in range(1, 577, 5):
        nearest = torch.cdist(places, places[spread(positions, keep)]).amin(1).max()
        assert nearest <= (576 / keep) ** 0.5 + 1


def test_frames_and_tiles_have_their_share():
    positions = torch.cat([grid(4, 4), grid(8, 12, tile=1)])
    assert (positions[spread(positions, 14), 1] == 0).sum() == 2
    video = grid(4, 4, frames=9)
    assert video[spread(video, 3), 0].tolist() == [1, 4, 7]
    assert video[spread(video, 9), 0].tolist() == list(range(9))


def test_class_tokens_do_not_move_the_lattice():
    patches = grid(8, 8)
    with_class = torch.cat([torch.tensor([[0, 0, -1, -1]]), patches])
    assert torch.equal(spread(with_class, 16) - 1, spread(patches, 16))


def test_without_rows_and_columns_the_order_is_spread():
    assert spread(torch.tensor([[0, 0, -1, -1]]).expand(12, -1), 3).tolist() == [2, 6, 10]
    assert spread(torch.zeros(12, 4, dtype=torch.int64), 4).tolist() == [1, 4, 7, 10]


def test_tokens_that_are_missing_or_in_another_order():
    positions = grid(6, 6)
    holes = positions[positions[:, 2] + positions[:, 3] != 5]
    for keep in range(1, len(holes) + 1):
        assert len(set(spread(holes, keep).tolist())) == keep
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    assert torch.equal(order[spread(positions[order], 7)], spread(positions, 7))
