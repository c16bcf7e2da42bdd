"""Methods that rank tokens by attention or merge them, against released code and against plain loops in float64."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zooprune.pruners import get_pruner
from zooprune.tokens import VisualTokens

DATA = Path(__file__).parent / "data"
HOLOV = np.load(DATA / "holov.npz")
NAMES = ["holov"]


def of(golden, case):
    prefix = f"case{case}_"
    return {name.removeprefix(prefix): golden[name] for name in golden.files if name.startswith(prefix)}


def named(golden):
    return pytest.mark.parametrize("case", range(int(golden["num_cases"])), ids=lambda n: str(golden[f"case{n}_name"]))


def make_tokens(total, seed=0, columns=6, **signals):
    """Return random tokens in raster order, with every signal these methods read."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    def attention():
        return draw(total, 1).mul(2).softmax(0)

    features, place = draw(total, 10), torch.arange(total)
    positions = torch.stack([place * 0, place * 0, place // columns, place % columns], dim=-1)
    drawn = {
        "tower_attention": attention(), "tower_received": attention(), "tower_received/0.375": attention(),
        "tower_joint_attention/-1": attention(), "tower_joint_keys/-1": draw(total, 12), "tower_keys": draw(total, 8),
    }  # fmt: skip
    projector = nn.Linear(10, 7, bias=False)
    with torch.no_grad():
        projector.weight.copy_(draw(7, 10))
        return VisualTokens(features, projector(features), projector, positions, drawn | signals)


def permuted(tokens, order):
    return dataclasses.replace(
        tokens,
        features=tokens.features[order],
        embeddings=tokens.embeddings[order],
        positions=tokens.positions[order],
        signals={name: values[order] for name, values in tokens.signals.items()},
    )


def cosines(rows):
    rows = rows.double().numpy()
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T


# What all of them have in common


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("total", [1, 2, 3, 7, 30])
def test_every_budget_of_every_number_of_tokens_is_met(name, total):
    tokens = make_tokens(total)
    for keep in range(1, total + 1):
        selection = get_pruner(name).select(tokens, keep)
        assert len(selection) == keep
        if keep == total:
            assert selection.merged is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_decided_in_float32(name, dtype):
    tokens = make_tokens(30)
    half = dataclasses.replace(tokens, features=tokens.features.to(dtype), embeddings=tokens.embeddings.to(dtype))
    widened = dataclasses.replace(half, features=half.features.float(), embeddings=half.embeddings.float())
    half = dataclasses.replace(half, projector=lambda x: tokens.projector(x.float()).to(dtype))
    with torch.no_grad():
        for keep in (1, 6, 17):
            one, other = (get_pruner(name).select(given, keep) for given in (half, widened))
            assert torch.equal(one.index, other.index)
            assert (one.into is None) == (other.into is None) and (
                one.into is None or torch.equal(one.into, other.into)
            )
            if one.merged is not None:
                assert one.merged.dtype == dtype
                torch.testing.assert_close(one.merged.float(), other.merged, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_that_are_all_alike_are_no_trouble(name):
    tokens = make_tokens(12)
    same = torch.zeros(12, dtype=torch.int64)
    for row in (tokens.features[:1], torch.zeros(1, 10)):
        copies = dataclasses.replace(
            tokens,
            features=row.expand(12, -1).contiguous(),
            embeddings=tokens.projector(row).detach().expand(12, -1).contiguous(),
            signals={name: values[same] for name, values in tokens.signals.items()},
        )
        for keep in (1, 5, 12):
            selection = get_pruner(name).select(copies, keep)
            assert len(selection) == keep
            assert selection.merged is None or bool(selection.merged.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_it_says_from_where_it_reads_attention(name):
    pruner = get_pruner(name)
    bare = dataclasses.replace(make_tokens(6), signals={})
    if pruner.needs:
        with pytest.raises(ValueError, match=rf"{name} reads {pruner.needs[0]}"):
            pruner.select(bare, 3)


# HoloV


def holov_tokens(data, row):
    features = torch.tensor(data["features"][row].astype(np.float32))
    attention = torch.tensor(data["cls_attention"][row][:, None])
    positions = torch.zeros(len(features), 4, dtype=torch.int64)
    return VisualTokens(features, features, nn.Identity(), positions, {"tower_attention": attention})


@named(HOLOV)
def test_holov_keeps_what_the_official_code_keeps(case):
    data = of(HOLOV, case)
    keep = int(data["k"])
    for row, order in enumerate(data["kept_order"]):
        pruner = get_pruner("holov", crops=int(data["num_chunks"]), official=True)
        kept = pruner.select(holov_tokens(data, row), keep).index.tolist()
        assert len(kept) == keep
        # The official code loses places that a crop is too small for, and fills them with zeros.
        theirs = [token for token in order.tolist() if token >= 0]
        assert set(theirs) <= set(kept)
        if not data["num_zero_rows"]:
            assert kept == sorted(theirs)


def plain_holov(tokens, keep, crops, weight, official):
    """Return what stays, token by token in float64."""
    attention = tokens.signals["tower_attention"][:, 0].double().numpy()
    scores, worth, parts = {}, [], np.array_split(np.arange(len(tokens)), crops)
    for part in parts:
        cosine = cosines(tokens.embeddings[part])
        np.fill_diagonal(cosine, 0)
        others = max(len(part) - 1, 1)
        mean = cosine.sum(1) / others
        variance = ((cosine - mean[:, None]) ** 2).sum(1) / others
        scale = attention[part].mean() / (variance.mean() + 1e-6)
        combined = attention[part] + weight * scale * variance
        worth.append(combined.mean())
        scores |= dict(zip(part, attention[part] if official else combined, strict=True))
    places = [0] * crops
    while sum(places) < keep:
        left = keep - sum(places)
        room = [crop for crop in range(crops) if places[crop] < len(parts[crop])]
        whole = sum(worth[crop] for crop in room)
        given = {crop: int(worth[crop] / whole * left) for crop in room}
        heaviest = sorted(room, key=lambda crop: -worth[crop])
        for crop in heaviest[: left - sum(given.values())]:
            given[crop] += 1
        for crop in room:
            places[crop] = min(places[crop] + given[crop], len(parts[crop]))
    kept = []
    for part, number in zip(parts, places, strict=True):
        kept += sorted(part, key=lambda token: -scores[token])[:number]
    return sorted(kept)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10**6), st.booleans(), st.data())
def test_holov_is_its_definition(total, seed, official, data):
    tokens = make_tokens(total, seed)
    keep, crops = data.draw(st.integers(1, total)), data.draw(st.integers(1, total))
    pruner = get_pruner("holov", crops=crops, variance=0.5, official=official)
    assert pruner.select(tokens, keep).index.tolist() == plain_holov(tokens, keep, crops, 0.5, official)


def test_holov_of_the_paper_and_of_the_code_differ():
    tokens = make_tokens(60)
    paper, code = (get_pruner("holov", variance=2.0, official=which).select(tokens, 20) for which in (False, True))
    assert paper.index.tolist() != code.index.tolist()


@pytest.mark.parametrize(("keep", "crops"), [(64, 16), (128, 8), (192, 5), (576, 1), (1, 576)])
def test_holov_has_as_many_crops_as_published(keep, crops):
    tokens = make_tokens(576, columns=24)
    given = get_pruner("holov", crops=crops).select(tokens, keep).index
    assert torch.equal(get_pruner("holov").select(tokens, keep).index, given)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"crops": 0}, ValueError), ({"crops": 2.0}, TypeError), ({"crops": True}, TypeError),
        ({"variance": -0.1}, ValueError), ({"variance": float("nan")}, ValueError), ({"variance": "0"}, TypeError),
        ({"official": 1}, TypeError),
    ],
)  # fmt: skip
def test_holov_refuses_bad_options(options, error):
    with pytest.raises(error, match=next(iter(options))):
        get_pruner("holov", **options)
