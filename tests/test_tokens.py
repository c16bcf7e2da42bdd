from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zooprune.tokens import Budget, Selection, VisualTokens


@given(st.one_of(st.integers(1, 5000), st.floats(0, 1, exclude_min=True)), st.integers(1, 5000))
def test_a_budget_keeps_at_least_one_and_at_most_all(keep, total):
    assert 1 <= Budget(keep).count(total) <= total


@pytest.mark.parametrize(
    ("keep", "total", "count"),
    [(64, 576, 64), (1.0, 576, 576), (0.1112, 576, 64), (1, 576, 1), (600, 576, 576), (0.5, 5, 3), (0.001, 10, 1)],
)
def test_what_a_budget_comes_to(keep, total, count):
    assert Budget(keep).count(total) == count


@pytest.mark.parametrize("keep", [0, -1, 0.0, -0.5, 1.5, 2.5, math.nan, math.inf])
def test_budgets_out_of_range_are_refused(keep):
    with pytest.raises(ValueError, match=r"keep="):
        Budget(keep)


@pytest.mark.parametrize("keep", ["64", None, True, [64]])
def test_budgets_of_other_types_are_refused(keep):
    with pytest.raises(TypeError, match="keep"):
        Budget(keep)


@pytest.mark.parametrize("index", [[], [1, 1], [2, 1], [-1, 2], [0, 5]])
def test_a_selection_is_ascending_unique_and_in_range(index):
    with pytest.raises(ValueError, match="index"):
        Selection(torch.tensor(index, dtype=torch.int64), 5)


def test_the_mask_of_a_selection():
    selection = Selection(torch.tensor([0, 3]), 5)
    assert selection.mask.tolist() == [True, False, False, True, False]
    assert not selection.keeps_all


def test_a_selection_is_of_int64():
    with pytest.raises(ValueError, match="int64"):
        Selection(torch.tensor([0, 1], dtype=torch.int32), 5)


@pytest.mark.parametrize(
    ("features", "embeddings", "positions"),
    [((4, 3), (5, 2), (4, 4)), ((4, 3), (4, 2), (4, 3)), ((4, 3), (4, 2), (5, 4)), ((0, 3), (0, 2), (0, 4)),
     ((4,), (4, 2), (4, 4)), ((1, 4, 3), (4, 2), (4, 4))],
)  # fmt: skip
def test_visual_tokens_agree_in_number(features, embeddings, positions):
    with pytest.raises(ValueError, match=r"features"):
        VisualTokens(torch.ones(features), torch.ones(embeddings), lambda x: x, torch.zeros(positions).long())


def test_some_tokens_are_an_image_too():
    rows = torch.arange(12.0).view(4, 3)
    tokens = VisualTokens(rows, rows * 2, lambda x: x, torch.zeros(4, 4).long(), {"first_layer": rows * 3})
    some = tokens[torch.tensor([3, 1])]
    assert (
        len(some) == 2
        and torch.equal(some.signals["first_layer"], 3 * rows[[3, 1]])
        and torch.equal(some.embeddings, 2 * some.features)
    )
    with pytest.raises(ValueError, match="4 features need 4 rows of first_layer, got 3"):
        VisualTokens(rows, rows, lambda x: x, torch.zeros(4, 4).long(), {"first_layer": rows[:3]})
