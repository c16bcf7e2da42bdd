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

from conftest import Row, make_inputs
from zoo_of_models import CASES
from zooprune import prune
from zooprune.families import find_family
from zooprune.pruners import get_pruner
from zooprune.signals import find_signal
from zooprune.tokens import VisualTokens

DATA = Path(__file__).parent / "data"
HOLOV, PRUMERGE = (np.load(DATA / f"{name}.npz") for name in ("holov", "prumerge"))
NAMES = ["holov", "prumerge", "prumerge_plus", "vispruner", "hiprune", "visiondrop", "tome", "vflowopt"]


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
        "tower_context@39.26": attention(),
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
    if pruner.reads():
        with pytest.raises(ValueError, match=rf"{name} reads {pruner.reads()[0]}"):
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


# PruMerge


def prumerge_tokens(data):
    features, keys, query = (torch.tensor(data[name].astype(np.float32)) for name in ("features", "keys", "query_cls"))
    attention = (keys @ query * keys.shape[1] ** -0.5).softmax(0)
    signals = {"tower_joint_attention/-1": attention[1:, None], "tower_joint_keys/-1": keys[1:]}
    return VisualTokens(features, features, nn.Identity(), torch.zeros(len(features), 4, dtype=torch.int64), signals)


@named(PRUMERGE)
def test_prumerge_keeps_and_merges_as_the_official_code_does(case):
    data = of(PRUMERGE, case)
    tokens, name = prumerge_tokens(data), "prumerge_plus" if data["plus"] else "prumerge"
    order = data["kept_order"]
    pruner = get_pruner(name, native=bool(data["adaptive"]))
    selection = pruner.select(tokens, len(order) + 1)
    index = selection.index.tolist()
    # The row made of all others has a place of its own, which no token has in the official code.
    (rest,) = set(index) - set(order.tolist())
    assert len(index) == len(order) + 1
    expected = np.empty_like(data["tokens"])
    expected[np.searchsorted(index, order)] = data["tokens"][:-1]
    expected[index.index(rest)] = data["tokens"][-1]
    tolerance = 2e-6 * float(np.abs(expected).max())
    np.testing.assert_allclose(selection.merged, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", range(int(PRUMERGE["num_cases"])))
def test_prumerge_counts_outliers_as_the_official_code_does(case):
    data = of(PRUMERGE, case)
    if data["adaptive"]:
        tokens = prumerge_tokens(data)
        assert len(get_pruner("prumerge", native=True).select(tokens, 5)) == int(data["num_by_attention"]) + 1


def plain_prumerge(tokens, keep, plus):
    """Return kept tokens, their rows before the projector and what holds each token, one by one in float64."""
    total = len(tokens)
    attention = tokens.signals["tower_joint_attention/-1"][:, 0].double().numpy()
    features, cosine = tokens.features.double().numpy(), cosines(tokens.signals["tower_joint_keys/-1"])
    order = sorted(range(total), key=lambda token: -attention[token])
    count = max(1, keep - 1)
    if plus:
        strongest = max(1, round(count / 4))
        rest, spaced = sorted(order[strongest:]), count - strongest
        centres = order[:strongest] + [rest[number * len(rest) // spaced] for number in range(spaced)]
    else:
        centres = order[:count]
    rows, holders, nearest = {}, {}, {}
    for centre in centres:
        others = sorted((token for token in range(total) if token != centre), key=lambda token: -cosine[centre, token])
        rows[centre] = features[centre] + sum(attention[token] * features[token] for token in others[:32])
        for token in others[:32]:
            if token not in nearest or cosine[centre, token] > cosine[nearest[token], token]:
                nearest[token] = centre
    left = [token for token in order if token not in rows]
    kept = sorted([*centres, left[0]]) if keep > 1 else sorted(centres)
    if keep > 1:
        rows[left[0]] = sum(attention[token] * features[token] for token in left)
    for token in range(total):
        fallback = kept.index(left[0]) if keep > 1 else -1
        holders[token] = kept.index(nearest[token]) if token in nearest else fallback
    holders |= {token: place for place, token in enumerate(kept)}
    return kept, np.stack([rows[token] for token in kept]), [holders[token] for token in range(total)]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10**6), st.booleans(), st.data())
def test_prumerge_is_its_definition(total, seed, plus, data):
    tokens, keep = make_tokens(total, seed), data.draw(st.integers(1, total - 1))
    kept, rows, holders = plain_prumerge(tokens, keep, plus)
    selection = get_pruner("prumerge_plus" if plus else "prumerge").select(tokens, keep)
    assert selection.index.tolist() == kept and selection.into.tolist() == holders
    expected = rows @ tokens.projector.weight.detach().double().numpy().T
    np.testing.assert_allclose(selection.merged.detach(), expected, rtol=0, atol=2e-6 * np.abs(expected).max() + 1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 40), st.integers(0, 10**6))
def test_prumerge_does_not_depend_on_the_order_of_tokens(total, seed):
    tokens, order = make_tokens(total, seed), torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    for native in (False, True):
        pruner = get_pruner("prumerge", native=native)
        one, other = pruner.select(tokens, total // 2), pruner.select(permuted(tokens, order), total // 2)
        assert set(order[other.index].tolist()) == set(one.index.tolist())
        rows = dict(zip(order[other.index].tolist(), other.merged, strict=True))
        torch.testing.assert_close(torch.stack([rows[token] for token in one.index.tolist()]), one.merged)


def test_prumerge_says_whether_it_meets_its_budget():
    for name in ("prumerge", "prumerge_plus"):
        assert get_pruner(name).is_exact() and not get_pruner(name, native=True).is_exact()
        assert dataclasses.replace(get_pruner(name, native=True), native=False).is_exact()
        assert get_pruner(name, native=True).select(make_tokens(20), 20).merged is None
        with pytest.raises(TypeError, match="native"):
            get_pruner(name, native=1)


def test_prumerge_plus_of_an_image_where_too_many_or_no_tokens_stand_out():
    attention = torch.tensor([0.0] * 13 + [1.0] * 7)
    for scores in (attention, torch.ones(20)):
        tokens = make_tokens(20, **{"tower_joint_attention/-1": scores[:, None]})
        selection = get_pruner("prumerge_plus", native=True).select(tokens, 5)
        assert 1 <= len(selection) <= 20 and bool(selection.merged.isfinite().all())


# VisPruner


def plain_vispruner(tokens, keep, share):
    attention = tokens.signals["tower_attention"][:, 0].double().numpy()
    cosine = cosines(tokens.features)
    order = sorted(range(len(tokens)), key=lambda token: -attention[token])
    important = int(share * keep)
    kept, left = order[:important], order[important:]
    while len(left) > keep - important:
        even, odd = left[::2], left[1::2]
        if not odd:
            left = left[: keep - important]
            break
        duplicates = sorted(even, key=lambda token: -max(cosine[token, other] for other in odd))
        left = duplicates[min(8, len(left) - (keep - important)) :] + odd
    return sorted(kept + left)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.data())
def test_vispruner_is_its_definition(total, seed, share, data):
    tokens, keep = make_tokens(total, seed), data.draw(st.integers(1, total))
    selection = get_pruner("vispruner", important=share).select(tokens, keep)
    assert selection.index.tolist() == plain_vispruner(tokens, keep, share)


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 40), st.integers(0, 10**6))
def test_vispruner_does_not_depend_on_the_order_of_tokens(total, seed):
    tokens, order = make_tokens(total, seed), torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    pruner = get_pruner("vispruner")
    again = pruner.select(permuted(tokens, order), total // 2).index
    assert set(order[again].tolist()) == set(pruner.select(tokens, total // 2).index.tolist())


def test_vispruner_removes_copies_first():
    """Of two tokens that are alike, the first set loses its own while the other one stays."""
    attention = torch.arange(12, 0, -1.0)[:, None]
    rows = torch.eye(10)[[0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8]]
    tokens = dataclasses.replace(make_tokens(12), features=rows, signals={"tower_attention": attention})
    assert get_pruner("vispruner", important=0.0).select(tokens, 9).index.tolist() == [1, 3, *range(5, 12)]


@pytest.mark.parametrize(
    ("value", "error"), [(-0.1, ValueError), (1.1, ValueError), (float("nan"), ValueError), ("half", TypeError)]
)
def test_vispruner_refuses_bad_options(value, error):
    with pytest.raises(error, match="important"):
        get_pruner("vispruner", important=value)


# HiPrune


def plain_hiprune(tokens, keep, alpha, layer):
    last, middle = (
        tokens.signals[name][:, 0].double().tolist() for name in ("tower_received", f"tower_received/{layer}")
    )
    everything = range(len(tokens))
    anchors = sorted(everything, key=lambda token: -middle[token])[: round(keep * alpha / 5)]
    places = [tuple(place) for place in tokens.positions.tolist()]
    beside = set()
    for anchor in anchors:
        frame, tile, row, column = places[anchor]
        for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if (frame, tile, *near) in places:
                beside.add(places.index((frame, tile, *near)))
    buffers = sorted(beside - set(anchors), key=lambda token: -middle[token])
    chosen = (anchors + buffers)[:keep]
    registers = sorted(set(everything) - set(chosen), key=lambda token: -last[token])
    return sorted(chosen + registers[: keep - len(chosen)])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.data())
def test_hiprune_is_its_definition(total, seed, alpha, data):
    tokens, keep = make_tokens(total, seed), data.draw(st.integers(1, total))
    kept = get_pruner("hiprune", alpha=alpha).select(tokens, keep).index
    assert kept.tolist() == plain_hiprune(tokens, keep, alpha, 0.375)


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 40), st.integers(0, 10**6))
def test_hiprune_does_not_depend_on_the_order_of_tokens(total, seed):
    tokens, order = make_tokens(total, seed), torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    pruner = get_pruner("hiprune", alpha=0.7)
    again = pruner.select(permuted(tokens, order), total // 2).index
    assert set(order[again].tolist()) == set(pruner.select(tokens, total // 2).index.tolist())


def test_hiprune_knows_no_neighbours_in_other_tiles_or_around_the_edge():
    middle = torch.zeros(24)
    middle[11] = 1.0
    tokens = make_tokens(24, **{"tower_received/0.375": middle[:, None], "tower_received": torch.arange(24.0)[:, None]})
    tokens.positions[12:, 1], tokens.positions[12:, 2] = 1, tokens.positions[12:, 2] - 2
    kept = get_pruner("hiprune", alpha=1.0).select(tokens, 5).index.tolist()
    # The anchor ends the last row of its tile: one token above and one on the left are all it has beside it.
    assert kept == [5, 10, 11, 22, 23]


def test_hiprune_reads_the_layer_it_is_told_to():
    assert get_pruner("hiprune", layer=3).reads() == ("tower_received", "tower_received/3")
    assert get_pruner("hiprune").reads() == ("tower_received", "tower_received/0.375")
    tokens = make_tokens(12, **{"tower_received/-2": torch.arange(12.0)[:, None]})
    assert 11 in get_pruner("hiprune", layer=-2, alpha=1.0).select(tokens, 3).index.tolist()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"alpha": 1.1}, ValueError), ({"alpha": -0.1}, ValueError), ({"alpha": "much"}, TypeError),
        ({"layer": 0.0}, ValueError), ({"layer": 1.5}, ValueError), ({"layer": None}, TypeError),
        ({"layer": True}, TypeError),
    ],
)  # fmt: skip
def test_hiprune_refuses_bad_options(options, error):
    with pytest.raises(error, match=next(iter(options))):
        get_pruner("hiprune", **options)


# VisionDrop


@pytest.mark.parametrize("keep", [1, 3, 20, 48])
def test_visiondrop_merges_into_an_eighth_of_what_it_keeps(keep):
    tokens = make_tokens(120)
    one = get_pruner("visiondrop").select(tokens, keep)
    other = get_pruner("visionzip", contextual=1 / 8).select(tokens, keep)
    assert torch.equal(one.index, other.index) and torch.equal(one.into, other.into)
    assert (one.merged is None) == (other.merged is None)
    if one.merged is not None:
        torch.testing.assert_close(one.merged, other.merged, rtol=0, atol=0)


def test_visiondrop_is_its_definition():
    tokens, keep = make_tokens(60, 3), 16
    attention = tokens.signals["tower_attention"][:, 0].double().numpy()
    cosine, features = cosines(tokens.signals["tower_keys"]), tokens.features.double().numpy()
    order = sorted(range(60), key=lambda token: -attention[token])
    rest = sorted(order[14:])
    targets = [rest[0], rest[len(rest) // 2]]
    members = {target: [] for target in targets}
    for token in set(rest) - set(targets):
        members[max(targets, key=lambda target: cosine[token, target])].append(token)
    selection = get_pruner("visiondrop").select(tokens, keep)
    assert selection.index.tolist() == sorted(order[:14] + targets)
    for target, joined in members.items():
        expected = tokens.projector.weight.detach().double().numpy() @ (features[target] + features[joined].mean(0))
        row = selection.merged[selection.index.tolist().index(target)].detach()
        np.testing.assert_allclose(row, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


# ToMe


def plain_merge(metric, keep, per_round):
    """Return what holds each token, by rounds over lists of members in float64."""
    metric = metric.double().numpy()
    groups = [[token] for token in range(len(metric))]
    while len(groups) > keep:
        means = np.stack([metric[group].mean(0) for group in groups])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        sources, targets = range(0, len(groups), 2), range(1, len(groups), 2)
        pairs = []
        for source in sources:
            target = max(targets, key=lambda target: means[source] @ means[target])
            pairs.append((means[source] @ means[target], source, target))
        pairs.sort(key=lambda pair: -pair[0])
        merging = min(per_round or len(groups), len(groups) // 2, len(groups) - keep)
        gone = set()
        for _, source, target in pairs[:merging]:
            # The first of a group is the token whose place it has.
            groups[target] = groups[target] + groups[source]
            gone.add(source)
        groups = [group for place, group in enumerate(groups) if place not in gone]
    holder = [0] * len(metric)
    for group in groups:
        for token in group:
            holder[token] = group[0]
    return holder


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(0, 10**6), st.sampled_from([None, 1, 3]), st.data())
def test_tome_is_its_definition(total, seed, per_round, data):
    tokens, keep = make_tokens(total, seed), data.draw(st.integers(1, total))
    holder = plain_merge(tokens.signals["tower_keys"], keep, per_round)
    kept = sorted(set(holder))
    selection = get_pruner("tome", per_round=per_round).select(tokens, keep)
    assert selection.index.tolist() == kept
    assert selection.into.tolist() == [kept.index(token) for token in holder]
    if keep == total:
        assert selection.merged is None
        return
    features = tokens.features.double().numpy()
    means = np.stack([features[np.array(holder) == token].mean(0) for token in kept])
    expected = means @ tokens.projector.weight.detach().double().numpy().T
    np.testing.assert_allclose(selection.merged.detach(), expected, rtol=0, atol=2e-6 * np.abs(expected).max() + 1e-6)
    alone = selection.into.bincount(minlength=keep) == 1
    assert torch.equal(selection.merged[alone], tokens.embeddings[selection.index][alone])


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_tome_refuses_bad_options(value, error):
    with pytest.raises(error, match="per_round"):
        get_pruner("tome", per_round=value)


# VFlowOpt


def plain_vflowopt(tokens, keep, cell):
    """Return kept tokens, what the language model reads and what holds each token, by trying all numbers of cells."""
    total = len(tokens)
    importance = tokens.signals["tower_context@39.26"][:, 0].double().numpy()
    embeddings = tokens.embeddings.double().numpy()
    order = sorted(range(total), key=lambda token: -importance[token])
    places = tokens.positions.tolist()
    for recycled in range(keep + 1):
        kept, low = order[: keep - recycled], order[keep - recycled :]
        groups = {}
        for token in low:
            frame, tile, row, column = places[token]
            groups.setdefault((frame, tile, row // cell, column // cell), []).append(token)
        if len(groups) == recycled:
            break
    else:
        kept, groups = order[:keep], {}
    rows = {token: embeddings[token] for token in kept}
    holder = {token: token for token in kept}
    for group in groups.values():
        # The first of a group is the most important one.
        rows[group[0]] = np.average(embeddings[group], axis=0, weights=importance[group])
        holder |= dict.fromkeys(group, group[0])
    index = sorted(rows)
    into = [index.index(holder[token]) if token in holder else -1 for token in range(total)]
    return index, np.stack([rows[token] for token in index]), into


@settings(max_examples=80, deadline=None)
@given(st.integers(2, 60), st.integers(0, 10**6), st.sampled_from([1.0, 1.5, 3.0, 20.0]), st.data())
def test_vflowopt_is_its_definition(total, seed, cell, data):
    tokens, keep = make_tokens(total, seed), data.draw(st.integers(1, total - 1))
    index, rows, into = plain_vflowopt(tokens, keep, cell)
    selection = get_pruner("vflowopt", cell=cell).select(tokens, keep)
    assert selection.index.tolist() == index and selection.into.tolist() == into
    if selection.merged is None:
        assert sorted(set(into)) == [-1, *range(keep)]
    else:
        assert -1 not in into
        np.testing.assert_allclose(selection.merged, rows, rtol=0, atol=2e-6 * np.abs(rows).max())
        alone = selection.into.bincount(minlength=keep) == 1
        assert torch.equal(selection.merged[alone], tokens.embeddings[selection.index][alone])


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 40), st.integers(0, 10**6))
def test_vflowopt_does_not_depend_on_the_order_of_tokens(total, seed):
    tokens, order = make_tokens(total, seed), torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    pruner = get_pruner("vflowopt", cell=3.0)
    one, other = pruner.select(tokens, total // 2), pruner.select(permuted(tokens, order), total // 2)
    assert set(order[other.index].tolist()) == set(one.index.tolist())


def test_vflowopt_recycles_tiles_apart():
    tokens = make_tokens(24)
    tokens.positions[12:, 1], tokens.positions[12:, 2] = 1, tokens.positions[12:, 2] - 2
    selection = get_pruner("vflowopt", cell=100.0).select(tokens, 6)
    tiles = tokens.positions[:, 1]
    assert torch.equal(tiles[selection.index][selection.into], tiles)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"threshold": 0.5}, ValueError), ({"threshold": float("inf")}, ValueError), ({"threshold": "8"}, TypeError),
        ({"cell": 0.9}, ValueError), ({"cell": float("nan")}, ValueError), ({"cell": True}, TypeError),
    ],
)  # fmt: skip
def test_vflowopt_refuses_bad_options(options, error):
    with pytest.raises(error, match=next(iter(options))):
        get_pruner("vflowopt", **options)


def test_vflowopt_asks_for_the_threshold_it_is_given():
    assert get_pruner("vflowopt", threshold=30).reads() == ("tower_context@30.0",)
    assert get_pruner("vflowopt").reads() == ("tower_context@39.26",)


# Through a model


def test_signals_are_those_of_the_eager_tower(model):
    """Attention received from all tokens, and attention and keys of all heads taken for one."""
    inputs, tower = make_inputs(Row(2, 6)), model.model.vision_tower
    first = int(find_family(model).class_token(model))
    names = ("tower_received/0.375", "tower_joint_attention/-1", "tower_joint_keys/-1")
    seen = []
    with torch.no_grad():
        given = find_family(model).encode(model, "image", inputs, [find_signal(name) for name in names])
        layer = find_family(model).attentions(model)[-1]
        hooks = [
            projection.register_forward_hook(lambda module, args, output: seen.append(output))
            for projection in (layer.q_proj, layer.k_proj)
        ]
        model.set_attn_implementation({"vision_config": "eager"})
        attentions = tower(inputs["pixel_values"], output_attentions=True).attentions
        for hook in hooks:
            hook.remove()
    queries, keys = seen
    joint = (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(-1)
    asked = joint[:, 0] if first else joint.mean(1)
    for number, visual in enumerate(given.visuals):
        received, attention, key = (visual.tokens.signals[name] for name in names)
        torch.testing.assert_close(received[:, 0], attentions[0][number].mean((0, 1))[first:])
        torch.testing.assert_close(attention[:, 0], asked[number, first:])
        torch.testing.assert_close(key, keys[number, first:])


@pytest.mark.parametrize("threshold", [1.2, 1.6, 99.0])
def test_central_tokens_are_those_that_receive_most(model, threshold):
    inputs = make_inputs(Row(2, 6))
    first = int(find_family(model).class_token(model))
    with torch.no_grad():
        given = find_family(model).encode(model, "image", inputs, [find_signal(f"tower_context@{threshold}/-1")])
        model.set_attn_implementation({"vision_config": "eager"})
        attentions = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions[-1]
    for visual, weights in zip(given.visuals, attentions.mean(1), strict=True):
        received = weights.mean(0)
        central = received > threshold * received.mean()
        assert bool(central.any()) == (threshold < 99)
        expected = weights[central].mean(0) if threshold < 99 else received
        torch.testing.assert_close(visual.tokens.signals[f"tower_context@{threshold}/-1"][:, 0], expected[first:])


@pytest.mark.parametrize(
    "name",
    [
        "tower_keys/1.5",
        "tower_keys/0.0",
        "tower_keys/--1",
        "tower_keys/",
        "tower_keys/.",
        "tower_keys@3",
        "tower_context@",
        "tower_context@3/2.0",
    ],
)
def test_layers_that_make_no_sense_are_refused(name):
    with pytest.raises(ValueError, match="no signal"):
        find_signal(name)


@pytest.mark.parametrize(("share", "layer"), [(0.01, 0), (0.34, 0), (0.5, 1), (1.0, 2)])
def test_a_share_of_the_depth_names_a_layer(llava, share, layer):
    assert find_family(llava).layer(llava, find_signal(f"tower_keys/{share}").layer) == layer


@pytest.mark.parametrize("name", NAMES)
def test_a_model_generates_from_what_is_left(model, name):
    inputs = make_inputs(Row(1, 6), Row(2, 3))
    with torch.no_grad(), prune(model, name, keep=7) as session:
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3
    assert [len(image.selection) for image in session.reports[0].images] == [7, 7, 7]


@pytest.mark.parametrize("name", ["prumerge", "prumerge_plus"])
def test_a_model_generates_from_as_many_tokens_as_stand_out(model, name):
    inputs = make_inputs(Row(1, 6), Row(2, 3))
    with torch.no_grad(), prune(model, get_pruner(name, keep=7, native=True)) as session:
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3
    assert all(1 < len(image.selection) <= 36 for image in session.reports[0].images)


@pytest.mark.parametrize("scope", ["image", "tile", "prompt"])
@pytest.mark.parametrize("family", [name for name in CASES if find_family(CASES[name].model()).gives_tower_signals])
def test_every_family_gives_what_they_read(family, scope):
    case = CASES[family]
    model = case.model()
    inputs = case.make(model, [[case.kinds - 1, 0], [0]])
    for name in NAMES:
        with torch.no_grad(), prune(model, name, keep=0.6, scope=scope) as session:
            prepared = session.prepare(inputs)
        rows = torch.cat([part.flatten(0, -2) for part in prepared["mm_encoder_outputs"]["image"].pooler_output])
        assert len(rows) == session.reports[-1].kept and bool(rows.isfinite().all())
