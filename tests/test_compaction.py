from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zooprune.compaction import compact
from zooprune.prefill import check_prompt

IMAGE, PAD = 3, 0


@st.composite
def batches(draw):
    rows = draw(st.lists(st.lists(st.sampled_from([IMAGE, 7, 8, 9]), min_size=1, max_size=12), min_size=1, max_size=4))
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    slots = ids == IMAGE
    total = int(slots.sum())
    kept = torch.tensor(draw(st.lists(st.booleans(), min_size=total, max_size=total)), dtype=torch.bool)
    return rows, ids, mask, slots, kept


@settings(max_examples=150, deadline=None)
@given(batches(), st.sampled_from(["contiguous", "original"]))
def test_a_cut_batch_is_its_rows_cut_by_hand(batch, positions):
    rows, ids, mask, slots, kept = batch
    flags = iter(kept.tolist())
    expected = [[(place, one) for place, one in enumerate(row) if one != IMAGE or next(flags)] for row in rows]
    if not all(expected):
        return  # A row of images alone, all of them dropped: no selection does that.
    original = torch.full((len(ids),), positions == "original")
    cut = compact(ids, mask, slots, kept, original=original, pad_token_id=PAD)
    assert cut.input_ids.shape[1] == (ids.shape[1] if kept.all() else max(map(len, expected)))
    for number, row in enumerate(expected):
        real = cut.attention_mask[number].bool()
        assert bool(real[-len(row) :].all()) and int(real.sum()) == len(row)
        assert cut.input_ids[number][real].tolist() == [one for _, one in row]
        places = [place for place, _ in row] if positions == "original" else list(range(len(row)))
        assert cut.position_ids[number][real].tolist() == places
        assert bool((cut.input_ids[number][~real] == PAD).all())
    torch.testing.assert_close(cut.gather(ids, PAD), cut.input_ids, rtol=0, atol=0)


@settings(max_examples=100, deadline=None)
@given(batches(), st.sampled_from(["contiguous", "original"]))
def test_positions_on_further_axes_are_cut_by_hand(batch, positions):
    rows, ids, mask, slots, kept = batch
    stays = torch.ones_like(slots)
    stays[slots] = kept
    stays &= mask.bool()
    if not bool(stays.any(1).all()):
        return
    axes = torch.randint(0, 100, (2, *ids.shape), generator=torch.Generator().manual_seed(len(rows)))
    original = torch.full((len(ids),), positions == "original")
    cut = compact(ids, mask, slots, kept, original=original, pad_token_id=PAD, axes=axes)
    assert cut.position_ids.shape == (3, *cut.input_ids.shape)
    for number, places in enumerate(stays):
        real = cut.attention_mask[number].bool()
        order = list(range(int(real.sum())))
        assert cut.position_ids[0, number][real].tolist() == order
        for axis, found in zip(axes, cut.position_ids[1:, number], strict=True):
            # Nothing is numbered anew where nothing was dropped.
            as_before = positions == "original" or bool(kept.all())
            assert found[real].tolist() == (axis[number][places].tolist() if as_before else order)
        assert cut.source[number].tolist() == [-1] * int((~real).sum()) + places.nonzero()[:, 0].tolist()
        assert bool((cut.position_ids[0, number][~real] == 0).all())


def test_prompts_are_repeated_one_after_the_other_and_moved():
    ids = torch.tensor([[PAD, 7, IMAGE, 8], [IMAGE, 9, IMAGE, 8]])
    axes = torch.arange(16).view(2, 2, 4)
    cut = compact(
        ids, (ids != PAD).long(), ids == IMAGE, torch.tensor([True, False, True]),
        original=torch.ones(2, dtype=torch.bool), pad_token_id=PAD, axes=axes,
    )  # fmt: skip
    twice = cut.repeated(2)
    for name in ("input_ids", "attention_mask", "source"):
        one, other = getattr(cut, name)
        assert torch.equal(getattr(twice, name), torch.stack([one, one, other, other]))
    assert torch.equal(twice.position_ids, cut.position_ids[:, [0, 0, 1, 1]])
    moved = cut.to(torch.device("meta"))
    assert {value.device.type for value in vars(moved).values() if value is not None} == {"meta"}


def test_a_wrong_number_of_tokens_is_refused():
    ids = torch.tensor([[1, IMAGE, IMAGE, 7]])
    with pytest.raises(ValueError, match="2 image placeholders but the images fill 3"):
        compact(
            ids, torch.ones_like(ids), ids == IMAGE, torch.ones(3, dtype=torch.bool),
            original=torch.ones(1, dtype=torch.bool), pad_token_id=PAD,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[5, 0]], [[1, 0]], "padding_side"),
        ([[5, 6, 7]], [[1, 0, 1]], "padding_side"),
        ([[5, 6]], [[0, 0]], "empty"),
        ([[]], [[]], "empty"),
        ([5, 6], [1, 1], "empty"),
        ([[5, 6]], [[1]], "one shape"),
    ],
)
def test_prompts_that_cannot_be_cut_are_refused(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        check_prompt(torch.tensor(ids), torch.tensor(mask))
