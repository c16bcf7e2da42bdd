"""Budgets per tile, against the official implementation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from zooprune.budgeting import spend
from zooprune.policy import Policy
from zooprune.pruners import Pruner
from zooprune.selection import greedy_diverse
from zooprune.tokens import VisualTokens
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
