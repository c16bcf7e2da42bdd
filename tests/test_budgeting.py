"""Budgets per tile, against the official implementation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from zooprune.budgeting import budgets, deal, spend
from zooprune.policy import Policy
from zooprune.pruners import Pruner
from zooprune.selection import greedy_diverse
from zooprune.tokens import Selection, VisualTokens
from zooprune.visuals import Visual

GOLDEN = np.load(Path(__file__).parent / "data" / "zoo_next_frames.npz")
CASES = {str(GOLDEN[f"case{number}_name"]): number for number in range(int(GOLDEN["num_cases"]))}
#: Where every token of a tile is equally sensitive, the release takes the first ones; here diversity decides.
UNLIKE = {"constant_sensitivity_one_frame", "BUG_frame_smaller_than_k"}


@dataclass(frozen=True)
class Given(Pruner):
    """Takes sensitivity from the features' last column."""

    name: ClassVar[str] = "given"
    source: ClassVar[str] = "test"

    def score(self, tokens):
        return tokens.features[:, -1]

    def choose(self, scores, tokens, keep):
        return greedy_diverse(tokens.embeddings, scores, keep)


def image(number, keep):
    """Return the case as an image, with its newlines as separators, and a pruner for it."""
    features, importance, frame = (
        torch.from_numpy(GOLDEN[f"case{number}_{name}"]) for name in ("features", "importance", "frame_label")
    )
    slots = torch.arange(len(frame))
    newlines, places = slots[frame < 0], slots[frame >= 0]
    nothing = torch.zeros_like(places)
    positions = torch.stack([nothing, frame[places].long(), nothing, torch.arange(len(places))], dim=-1)
    scored = torch.cat([features, importance[:, None]], dim=1)[places]
    tokens = VisualTokens(scored, features[places], lambda x: x, positions)
    breaks = torch.cat([newlines, torch.tensor([-1])])[torch.searchsorted(newlines, places)]
    return Visual(tokens, len(frame), places, breaks), Given(keep=keep)


@pytest.mark.parametrize("name", [name for name in CASES if name not in UNLIKE])
def test_tiles_are_cut_like_the_official_ones(name):
    number = CASES[name]
    expected = torch.from_numpy(GOLDEN[f"case{number}_kept_unique_sorted"])
    visual, pruner = image(number, keep=len(expected))
    selection, kept = spend(pruner, visual, Policy(scope="tile", newlines="drop"))
    classes = torch.from_numpy(GOLDEN[f"case{number}_tie_class"])
    actual = visual.places[selection.index]
    assert sorted(classes[actual].tolist()) == sorted(classes[expected].tolist())
    assert torch.equal(kept.nonzero()[:, 0], actual)


def test_a_tile_smaller_than_its_share_leaves_the_rest_to_others():
    """Where the release keeps 42 of the 48 tokens that were asked for."""
    number = CASES["BUG_frame_smaller_than_k"]
    budget = len(GOLDEN[f"case{number}_kept_order"])
    visual, pruner = image(number, keep=budget)
    _, kept = spend(pruner, visual, Policy(scope="tile", newlines="drop"))
    assert len(GOLDEN[f"case{number}_kept_unique_sorted"]) < int(kept.sum()) == budget


# Tiles joined into one selection


@dataclass(frozen=True)
class Pairing(Pruner):
    """Keeps the highest features of the first column, and lets every other token join the kept one before it."""

    name: ClassVar[str] = "pairing"
    source: ClassVar[str] = "test"
    merges: bool = True

    def score(self, tokens):
        return tokens.features[:, 0]

    def choose(self, scores, tokens, keep):
        index = scores.argsort(descending=True)[:keep].sort().values
        into = torch.searchsorted(index, torch.arange(len(tokens)), right=True) - 1
        merged = tokens.embeddings[index] * 10 if self.merges else None
        return Selection(index, len(tokens), merged=merged, into=into)


def tiled(sizes, seed=0):
    """Return an image whose tiles' tokens are mixed with each other."""
    generator = torch.Generator().manual_seed(seed)
    tile = torch.cat([torch.full((size,), number) for number, size in enumerate(sizes)])
    tile = tile[torch.randperm(len(tile), generator=generator)]
    nothing = torch.zeros_like(tile)
    positions = torch.stack([nothing, tile, nothing, torch.arange(len(tile))], dim=-1)
    features = torch.rand(len(tile), 3, generator=generator)
    embeddings = torch.rand(len(tile), 4, generator=generator)
    return Visual.plain(VisualTokens(features, embeddings, lambda x: x, positions))


@pytest.mark.parametrize("sizes", [(4, 4), (3, 5, 2), (6, 1), (5,)])
@pytest.mark.parametrize("keep", [2, 4, 5])
@pytest.mark.parametrize("merges", [True, False])
def test_what_tiles_say_of_their_tokens_is_said_of_the_image(sizes, keep, merges):
    visual, pruner = tiled(sizes, seed=keep), Pairing(keep=keep, merges=merges)
    selection, kept = spend(pruner, visual, Policy(scope="tile"))
    tile = visual.tokens.positions[:, 1]
    assert selection.index.tolist() == kept.nonzero()[:, 0].tolist() and len(selection) == keep
    shares = deal(keep, list(sizes))
    for number, share in enumerate(shares):
        mine = (tile == number).nonzero()[:, 0]
        places = selection.index.tolist()
        if not share:
            assert not selection.scores[mine].any() and bool((selection.into[mine] == -1).all())
            continue
        alone = pruner.select(visual.tokens[mine], share)
        assert torch.equal(selection.scores[mine], visual.tokens.features[mine, 0])
        for token, into in zip(mine.tolist(), alone.into.tolist(), strict=True):
            owner = -1 if into < 0 else int(mine[alone.index[into]])
            assert selection.into[token] == (-1 if owner < 0 else places.index(owner))
        if merges:
            at = [places.index(int(token)) for token in mine[alone.index]]
            assert torch.equal(selection.merged[at], alone.merged)
    assert (selection.merged is None) == (not merges)


@pytest.mark.parametrize(
    ("keep", "slots", "scope", "stay"),
    [
        (4, [6, 3], "image", [4, 3]),
        (4, [6, 3], "tile", [4, 3]),
        (4, [6, 3], "prompt", [4]),
        (0.5, [6, 3], "image", [3, 2]),
        (0.5, [6, 3], "prompt", [5]),
        (20, [6, 3], "prompt", [9]),
        (4, [], "prompt", []),
        (4, [], "image", []),
    ],
)
def test_how_many_stay_is_known_from_the_slots_alone(keep, slots, scope, stay):
    assert budgets(keep, slots, scope) == stay


@dataclass(frozen=True)
class Wrong(Pruner):
    """Keeps one token fewer, or chooses among one more."""

    name: ClassVar[str] = "wrong"
    source: ClassVar[str] = "test"
    fewer: int = 0
    more: int = 0

    def select(self, tokens, keep):
        return Selection(torch.arange(keep - self.fewer), len(tokens) + self.more)


@pytest.mark.parametrize("scope", ["image", "tile", "prompt"])
def test_methods_that_do_something_else_are_found_out(scope):
    visual = tiled((6,))
    with pytest.raises(ValueError, match="kept 2 tokens"):
        spend(Wrong(keep=3, fewer=1), visual, Policy(scope=scope))
    if scope != "tile":
        with pytest.raises(ValueError, match="selected among 7 tokens of 6"):
            spend(Wrong(keep=3, more=1), visual, Policy(scope=scope))


@dataclass(frozen=True)
class Few(Pruner):
    """Keeps two tokens whatever it is asked for, and says so."""

    name: ClassVar[str] = "few"
    source: ClassVar[str] = "test"
    exact: ClassVar[bool] = False

    def select(self, tokens, keep):
        return Selection(torch.arange(2), len(tokens))


def test_separators_fill_up_an_exact_budget_and_no_other():
    tokens = tiled((4,)).tokens
    visual = Visual(tokens, 6, torch.tensor([0, 1, 3, 4]), torch.tensor([2, 2, 5, 5]))
    _, kept = spend(Few(keep=5), visual, Policy())
    assert kept.tolist() == [True, True, False, False, False, False]
    _, kept = spend(Given(keep=5), visual, Policy())
    assert kept.tolist() == [True, True, True, True, True, False]


@dataclass(frozen=True)
class Counting(Pruner):
    """Counts how often it scores."""

    name: ClassVar[str] = "counting"
    source: ClassVar[str] = "test"
    calls: ClassVar[list[int]] = []

    def score(self, tokens):
        self.calls.append(len(tokens))
        return tokens.features[:, 0]


@pytest.mark.parametrize(("scope", "calls"), [("image", [10]), ("tile", [5, 5])])
def test_tokens_are_scored_once_however_often_rows_are_tried(scope, calls):
    tokens = tiled((5, 5)).tokens
    places = torch.arange(10) + torch.arange(10) // 2
    visual = Visual(tokens, 15, places, places // 3 * 3 + 2)
    Counting.calls.clear()
    _, kept = spend(Counting(keep=7), visual, Policy(scope=scope, newlines="rows"))
    assert int(kept.sum()) == 7 and Counting.calls == calls


def test_tiles_of_which_only_some_merge_are_put_together():
    class Halves(Pruner):
        def select(self, tokens: VisualTokens, keep: int) -> Selection:
            index = torch.arange(keep)
            if keep == len(tokens):
                return Selection(index, keep)
            into = torch.cat([index, torch.zeros(len(tokens) - keep, dtype=torch.int64)])
            return Selection(index, len(tokens), merged=tokens.embeddings[index] + 1, into=into)

    whole, cut = torch.zeros(2, 4, dtype=torch.int64), torch.tensor([[0, 1, 0, column] for column in range(4)])
    rows = torch.randn(6, 3)
    tokens = VisualTokens(rows, rows, nn.Identity(), torch.cat([whole, cut]))
    selection, _ = spend(Halves(keep=5), Visual.plain(tokens), Policy(scope="tile"))
    assert selection.index.tolist() == [0, 1, 2, 3, 4] and selection.into.tolist() == [0, 1, 2, 3, 4, 2]
    torch.testing.assert_close(selection.merged, rows[:5] + torch.tensor([0.0, 0, 1, 1, 1])[:, None])
