"""A part of the budget for what the question names."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zooprune.pruners import get_pruner
from zooprune.selection import greedy_diverse
from zooprune.tokens import VisualTokens


def make_tokens(total, seed, words=4):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    projector = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5)).requires_grad_(False)
    for parameter in projector.parameters():
        parameter.copy_(draw(*parameter.shape))
    features = draw(total, 6)
    positions = torch.zeros(total, 4, dtype=torch.int64)
    positions[:, 3] = torch.arange(total)
    return VisualTokens(features, projector(features), projector, positions, context={"question": draw(words, 5)})


def kept(name, tokens, keep, **options):
    return get_pruner(name, keep=keep, **options).select(tokens, keep).index.tolist()


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 99), st.floats(0, 1), st.data())
def test_what_is_asked_about_comes_first_and_zoo_fills_up(total, seed, asked, data):
    tokens = make_tokens(total, seed)
    keep = data.draw(st.integers(1, total))
    found = kept("zoo_asked", tokens, keep, asked=asked)
    cosines = F.cosine_similarity(
        tokens.embeddings[:, None].double(), tokens.context["question"][None].double(), dim=-1
    )
    named = cosines.amax(1).sort(descending=True, stable=True).indices[: int(asked * keep)].tolist()
    order = greedy_diverse(tokens.embeddings, get_pruner("zoo", keep=keep).score(tokens), keep).tolist()
    rest = [token for token in order if token not in named]
    assert found == sorted([*named, *rest[: keep - len(named)]])
    assert len(found) == keep


def test_without_a_question_or_a_share_for_it_it_is_zoo():
    tokens = make_tokens(20, 0)
    silent = dataclasses.replace(tokens, context={"question": torch.empty(0, 5)})
    for options in ({}, {"centred": True, "distinctive": True}, {"fusion": "sum"}):
        expected = kept("zoo", tokens, 7, **options)
        assert kept("zoo_asked", silent, 7, **options) == kept("zoo_asked", tokens, 7, asked=0, **options) == expected


def test_bad_shares_are_refused():
    with pytest.raises(ValueError, match="not a share"):
        get_pruner("zoo_asked", keep=4, asked=1.5)
    with pytest.raises(TypeError, match="must be a number"):
        get_pruner("zoo_asked", keep=4, asked="all")
