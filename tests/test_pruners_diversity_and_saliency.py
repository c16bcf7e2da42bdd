"""DivPrune, SCOPE, MMTok and AgilePruner against released code and plain loops in float64.

The vectors are numbers that released code gave for synthetic tokens, stored in float16 where that loses nothing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoo_of_models import CASES
from zooprune import prune
from zooprune.families import find_family
from zooprune.pruners import get_pruner
from zooprune.selection.components import effective_rank
from zooprune.selection.greedy import picks_and_cosines
from zooprune.selection.isolation import most_isolated
from zooprune.tokens import VisualTokens

DATA = Path(__file__).parent / "data"
DIV, MM, AGILE = (np.load(DATA / f"{name}.npz") for name in ("divprune", "mmtok", "agilepruner"))
SEEDS = st.integers(0, 10**6)


def of(golden, case):
    prefix = f"case{case}_"
    return {name.removeprefix(prefix): golden[name] for name in golden.files if name.startswith(prefix)}


def named(golden):
    return pytest.mark.parametrize("case", range(int(golden["num_cases"])), ids=lambda n: str(golden[f"case{n}_name"]))


def tensor(values):
    return torch.tensor(values.astype(np.float32))


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shuffled(count, seed):
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def tokens_of(embeddings, features=None, attention=None, question=None):
    """Return tokens that are known by what is given."""
    total = len(embeddings)
    place = torch.arange(total)
    positions = torch.stack([place * 0, place * 0, place // 6, place % 6], dim=-1)
    signals = {} if attention is None else {"tower_attention": attention[:, None]}
    context = {} if question is None else {"question": question}
    features = embeddings if features is None else features
    return VisualTokens(features, embeddings, nn.Identity(), positions, signals, context)


def make_tokens(total, seed=0, width=8):
    """Return random tokens with everything these methods read."""
    attention = drawn(total, seed=seed + 1).mul(2).softmax(0)
    return tokens_of(
        drawn(total, width, seed=seed), drawn(total, 10, seed=seed + 2), attention, drawn(7, width, seed=seed + 3)
    )


def kept(name, tokens, keep, **options):
    return get_pruner(name, **options).select(tokens, keep).index.tolist()


def cosines(rows, others=None):
    one, other = (
        values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        for values in (rows.double().numpy(), (rows if others is None else others).double().numpy())
    )
    return one @ other.T


def check_greedy(picked, values):
    """Check that every pick has the largest value, or one that rounding does not tell from it."""
    left = set(range(len(values([]))))
    for place, token in enumerate(picked):
        found = values(picked[:place])
        assert token in left
        assert found[token] >= max(found[one] for one in left) * (1 - 1e-4)
        left.remove(token)


# DivPrune


def plain_divprune(embeddings, keep):
    cosine, total = cosines(embeddings), range(len(embeddings))
    nearest = [min((1 - cosine[one, other] for other in total if other != one), default=2.0) for one in total]
    picked = [next(one for one in total if nearest[one] >= max(nearest) - 1e-6)]
    while len(picked) < keep:
        left = [token for token in total if token not in picked]
        picked.append(max(left, key=lambda token: min(1 - cosine[token, other] for other in picked)))
    return picked


@named(DIV)
def test_divprune_picks_what_the_released_code_picks(case):
    data = of(DIV, case)
    embeddings, keep = tensor(data["features"]), int(data["k"])
    ones = torch.ones(len(embeddings))
    picked = picks_and_cosines(embeddings, ones, keep, first=most_isolated(embeddings, ones))[0].tolist()
    released = data["kept_order"].tolist()
    assert len(set(picked)) == keep
    if str(data["name"]).startswith("BUG"):
        # The released code picks token 0 again and again once every direction is there; here its copies follow.
        distinct = len(set(released))
        assert picked[:distinct] == released[:distinct] and set(released[distinct:]) == {0}
        assert (
            picked[distinct:]
            == [token for token in range(len(embeddings)) if token not in picked[:distinct]][: keep - distinct]
        )
    else:
        assert picked == released
    assert kept("divprune", tokens_of(embeddings), keep) == sorted(picked)


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 30), seed=SEEDS, data=st.data())
def test_divprune_is_its_definition(total, seed, data):
    embeddings, keep = drawn(total, 8, seed=seed), data.draw(st.integers(1, total))
    selection = get_pruner("divprune").select(tokens_of(embeddings), keep)
    assert selection.index.tolist() == sorted(plain_divprune(embeddings, keep))
    np.testing.assert_allclose(selection.cosines, cosines(embeddings)[selection.index.numpy()], rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(total=st.integers(3, 30), seed=SEEDS)
def test_divprune_does_not_depend_on_the_order_of_tokens(total, seed):
    # One token is unlike all others, which share a direction. Else two tokens that are nearest to each other may tie
    # for the first place.
    embeddings = torch.cat([drawn(total, 8, seed=seed) + 3, torch.zeros(total, 1)], dim=1)
    embeddings[0] = torch.tensor([0.0] * 8 + [1.0])
    embeddings[1:, 8] = -0.5
    order, keep = shuffled(total, seed), max(1, total // 2)
    again = torch.tensor(kept("divprune", tokens_of(embeddings[order]), keep))
    assert sorted(order[again].tolist()) == kept("divprune", tokens_of(embeddings), keep)


@settings(max_examples=30, deadline=None)
@given(distinct=st.integers(2, 8), seed=SEEDS)
def test_divprune_keeps_every_kind_before_any_copy(distinct, seed):
    source = torch.cat([torch.arange(distinct), shuffled(2 * distinct, seed) % distinct])
    embeddings = drawn(distinct, 24, seed=seed)[source]
    for keep in range(1, 3 * distinct + 1):
        index = get_pruner("divprune").select(tokens_of(embeddings), keep).index
        assert len(index) == keep
        assert len(set(source[index].tolist())) == min(keep, distinct)


def test_divprune_starts_elsewhere_than_the_ablation():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    assert kept("divprune", tokens_of(embeddings), 1) == [2]
    assert kept("diversity", tokens_of(embeddings), 1) == [0]
    assert kept("divprune", tokens_of(embeddings), 3) == [0, 1, 2]


# SCOPE


def scope_values(tokens, power=1.0):
    cosine, total = cosines(tokens.features), range(len(tokens))
    attention = tokens.signals["tower_attention"][:, 0].double().numpy()

    def values(picked):
        covered = [max([0.0, *(cosine[one, other] for other in picked)]) for one in total]
        gains = [sum(max(0.0, cosine[token, one] - covered[one]) for one in total) for token in total]
        return np.array(gains) * attention**power

    return values


@settings(max_examples=50, deadline=None)
@given(total=st.integers(1, 30), seed=SEEDS, power=st.sampled_from([0.0, 0.5, 1.0, 2.0]), data=st.data())
def test_scope_is_its_definition(total, seed, power, data):
    tokens, keep = make_tokens(total, seed), data.draw(st.integers(1, total))
    pruner = get_pruner("scope", power=power)
    picked = pruner.choose(pruner.score(tokens), tokens, keep).tolist()
    assert len(picked) == keep
    check_greedy(picked, scope_values(tokens, power))


def test_scope_weighs_coverage_against_attention():
    """Four tokens that are alike, one apart, and one of much attention, which covers a little of two of the four."""
    features = torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [1, 0, 0.1], [1, 0.1, 0.1], [0, 1, 0], [0, 0, 1]])
    attention = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.5])
    tokens = tokens_of(features, features, attention)
    assert kept("scope", tokens, 1) == [5]
    assert kept("scope", tokens, 1, power=0) == [3]
    assert kept("scope", tokens, 2) == [1, 5]
    # However small attention is, and however large the power, tokens do not become the same.
    tiny = dataclasses.replace(tokens, signals={"tower_attention": attention[:, None] * 1e-20})
    assert kept("scope", tiny, 1, power=8) == [5]


@settings(max_examples=30, deadline=None)
@given(distinct=st.integers(2, 8), seed=SEEDS)
def test_scope_keeps_every_kind_before_any_copy(distinct, seed):
    source = torch.cat([torch.arange(distinct), shuffled(2 * distinct, seed) % distinct])
    # No two kinds are so much alike that one covers the other.
    features = torch.eye(distinct)[source] + 0.1
    tokens = tokens_of(features, features, drawn(3 * distinct, seed=seed).softmax(0))
    for keep in range(1, 3 * distinct + 1):
        index = get_pruner("scope").select(tokens, keep).index
        assert len(set(source[index].tolist())) == min(keep, distinct)


# MMTok


def mmtok_of(data):
    options = {"text_temperature": "tau_text", "image_temperature": "tau_vision", "image": "alpha"}
    tokens = tokens_of(tensor(data["vision_proj"]), tensor(data["vision_enc"]), question=tensor(data["text_embeds"]))
    return get_pruner("mmtok", **{ours: float(data[theirs]) for ours, theirs in options.items()}), tokens


@named(MM)
def test_mmtok_picks_what_the_released_code_picks(case):
    data = of(MM, case)
    pruner, tokens = mmtok_of(data)
    picked = pruner.choose(pruner.score(tokens), tokens, int(data["k"])).numpy()
    # Twins have one place between them: either may be taken.
    twins = data["tie_class"]
    assert sorted(twins[picked]) == sorted(twins[data["kept_order"]])
    if data["order_well_defined"]:
        assert twins[picked].tolist() == twins[data["kept_order"]].tolist()


def softmax(values):
    shifted = np.exp(values - values.max(0, keepdims=True))
    return shifted / shifted.sum(0, keepdims=True)


def mmtok_values(tokens, text_temperature=0.02, image_temperature=0.2, image=0.5):
    words = softmax(cosines(tokens.embeddings, tokens.context["question"]) / text_temperature)
    others = softmax(cosines(tokens.features) / image_temperature)
    things = np.concatenate([words / max(1, words.shape[1]), image * others / len(others)], axis=1)
    return lambda picked: np.maximum(things - things[picked].max(0, initial=0), 0).sum(1)


@settings(max_examples=40, deadline=None)
@given(
    total=st.integers(1, 30), seed=SEEDS, text=st.sampled_from([0.01, 0.02, 1.0]),
    image=st.sampled_from([0.1, 0.5, 3.0]), data=st.data(),
)  # fmt: skip
def test_mmtok_is_its_definition(total, seed, text, image, data):
    tokens, keep = make_tokens(total, seed), data.draw(st.integers(1, total))
    pruner = get_pruner("mmtok", text_temperature=text, image=image)
    scores = pruner.score(tokens)
    expected = softmax(cosines(tokens.embeddings, tokens.context["question"]) / text).mean(1)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-6)
    picked = pruner.choose(scores, tokens, keep).tolist()
    assert len(picked) == keep
    check_greedy(picked, mmtok_values(tokens, text, image=image))


@pytest.mark.parametrize(("total", "keep"), [(576, 64), (1200, 128)])
def test_mmtok_tells_small_shares_of_many_tokens_apart(total, keep):
    tokens = make_tokens(total, width=24)
    pruner = get_pruner("mmtok")
    check_greedy(pruner.choose(pruner.score(tokens), tokens, keep).tolist(), mmtok_values(tokens))


def test_mmtok_covers_the_image_where_there_is_no_text():
    tokens = dataclasses.replace(make_tokens(30), context={"question": torch.zeros(0, 8)})
    pruner = get_pruner("mmtok")
    scores = pruner.score(tokens)
    assert scores.tolist() == [0.0] * 30
    check_greedy(pruner.choose(scores, tokens, 9).tolist(), mmtok_values(tokens))


def test_mmtok_reads_the_question():
    tokens = make_tokens(30)
    other = dataclasses.replace(tokens, context={"question": make_tokens(30, seed=9).context["question"]})
    assert kept("mmtok", tokens, 9) != kept("mmtok", other, 9)
    # Each word has a token that says just this, and the image counts for nothing.
    spelled = dataclasses.replace(tokens, context={"question": tokens.embeddings[[3, 17, 24]]})
    assert kept("mmtok", spelled, 3, image=0) == [3, 17, 24]


@settings(max_examples=30, deadline=None)
@given(distinct=st.integers(2, 8), seed=SEEDS)
def test_mmtok_keeps_every_kind_before_any_copy(distinct, seed):
    source = torch.cat([torch.arange(distinct), shuffled(2 * distinct, seed) % distinct])
    tokens = make_tokens(distinct, seed)[source]
    for keep in range(1, 3 * distinct + 1):
        index = get_pruner("mmtok").select(tokens, keep).index
        assert len(set(source[index].tolist())) == min(keep, distinct)


# AgilePruner


def agile_of(data):
    return tokens_of(tensor(data["features"]), attention=torch.tensor(data["cls_attention"]).mean(0))


@named(AGILE)
def test_agilepruner_picks_what_the_fork_picks(case):
    data = of(AGILE, case)
    tokens, pruner = agile_of(data), get_pruner("agilepruner")
    assert float(effective_rank(tokens.embeddings)) == pytest.approx(float(data["erank64"]), rel=1e-5)
    picked = pruner.choose(pruner.score(tokens), tokens, int(data["k"]))
    assert picked.tolist() == data["kept_order"].tolist()


def plain_agilepruner(tokens, keep, step=0.01, average=90.0, most=0.25):
    distance = 1 - cosines(tokens.embeddings)
    order = tokens.signals["tower_attention"][:, 0].sort(descending=True, stable=True).indices.tolist()
    rank = float(effective_rank(tokens.embeddings))
    left, removed = [], set()
    for place, token in enumerate(order, start=1):
        if token in removed:
            continue
        left.append(token)
        threshold = min(place * (rank / average) * step, most)
        removed |= {other for other in order if other not in left and distance[token, other] < threshold}
    return [*left, *(token for token in order if token in removed)][:keep]


@settings(max_examples=25, deadline=None)
@given(total=st.integers(1, 30), seed=SEEDS, average=st.sampled_from([0.5, 5.0, 90.0]), data=st.data())
def test_agilepruner_is_its_definition(total, seed, average, data):
    # In three channels, many tokens are alike; with a small average, thresholds are as high as they become.
    tokens, keep = make_tokens(total, seed, width=3), data.draw(st.integers(1, total))
    pruner = get_pruner("agilepruner", average=average)
    picked = pruner.choose(pruner.score(tokens), tokens, keep).tolist()
    assert picked == plain_agilepruner(tokens, keep, average=average)


def test_agilepruner_goes_by_attention_in_simple_images_and_by_distance_in_complex_ones():
    tokens = make_tokens(30, width=6)
    by_attention = tokens.signals["tower_attention"][:, 0].argsort(descending=True)[:9].sort().values.tolist()
    assert kept("agilepruner", tokens, 9, average=1e6) == by_attention
    assert kept("agilepruner", tokens, 9, step=0) == by_attention
    assert kept("agilepruner", tokens, 9, most=0) == by_attention
    assert kept("agilepruner", tokens, 9, average=0.1, most=0.6) != by_attention


@settings(max_examples=30, deadline=None)
@given(distinct=st.integers(2, 8), seed=SEEDS)
def test_agilepruner_keeps_every_kind_before_any_copy(distinct, seed):
    source = torch.cat([torch.arange(distinct), shuffled(2 * distinct, seed) % distinct])
    tokens = tokens_of(torch.eye(8)[source], attention=drawn(3 * distinct, seed=seed).softmax(0))
    for keep in range(1, 3 * distinct + 1):
        index = get_pruner("agilepruner").select(tokens, keep).index
        assert len(set(source[index].tolist())) == min(keep, distinct)


# All of them


NAMES = ["divprune", "scope", "mmtok", "agilepruner"]
every = pytest.mark.parametrize("name", NAMES)


@every
@pytest.mark.parametrize("total", [1, 2, 3, 7, 30])
def test_every_budget_of_every_number_of_tokens_is_met(name, total):
    tokens = make_tokens(total)
    for keep in range(1, total + 1):
        index = kept(name, tokens, keep)
        assert len(set(index)) == keep and index == sorted(index)
        assert index == kept(name, tokens, keep)
    assert index == list(range(total))


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("seed", range(5))
def test_permuting_tokens_permutes_the_choice(name, seed):
    tokens, order = make_tokens(36, seed), shuffled(36, seed)
    for keep in (1, 9, 20):
        again = torch.tensor(kept(name, tokens[order], keep))
        assert sorted(order[again].tolist()) == kept(name, tokens, keep)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_decided_in_float32(name, dtype):
    tokens = make_tokens(30)
    half = dataclasses.replace(
        tokens, features=tokens.features.to(dtype), embeddings=tokens.embeddings.to(dtype),
        context={"question": tokens.context["question"].to(dtype)},
    )  # fmt: skip
    wide = dataclasses.replace(
        half, features=half.features.float(), embeddings=half.embeddings.float(),
        context={"question": half.context["question"].float()},
    )  # fmt: skip
    for keep in (1, 6, 17):
        assert kept(name, half, keep) == kept(name, wide, keep)


@every
def test_tokens_that_are_all_alike_are_no_trouble(name):
    tokens = make_tokens(12)[torch.zeros(12, dtype=torch.int64)]
    for row in (tokens, dataclasses.replace(tokens, features=torch.zeros(12, 10), embeddings=torch.zeros(12, 8))):
        for keep in (1, 5, 12):
            assert kept(name, row, keep) == list(range(keep))


@every
def test_nan_is_refused(name):
    tokens, row = make_tokens(12), torch.tensor([3])
    broken = dataclasses.replace(
        tokens, features=tokens.features.index_fill(0, row, torch.nan),
        embeddings=tokens.embeddings.index_fill(0, row, torch.nan),
    )  # fmt: skip
    with pytest.raises(ValueError, match="NaN"):
        get_pruner(name).select(broken, 5)


@every
def test_it_says_what_it_reads(name):
    pruner, bare = get_pruner(name), dataclasses.replace(make_tokens(6), signals={}, context={})
    if pruner.needs:
        with pytest.raises(ValueError, match=rf"{name} reads {pruner.needs[0]}"):
            pruner.select(bare, 3)
    else:
        assert len(pruner.select(bare, 3)) == 3
    assert pruner.query_aware == ("question" in pruner.needs)


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("scope", {"power": -1}, ValueError), ("scope", {"power": "1"}, TypeError),
        ("scope", {"power": float("inf")}, ValueError), ("mmtok", {"text_temperature": 0}, ValueError),
        ("mmtok", {"image_temperature": -0.2}, ValueError), ("mmtok", {"image_temperature": True}, TypeError),
        ("mmtok", {"text_temperature": float("inf")}, ValueError), ("mmtok", {"image": -1}, ValueError),
        ("agilepruner", {"step": -0.01}, ValueError), ("agilepruner", {"step": None}, TypeError),
        ("agilepruner", {"average": 0}, ValueError), ("agilepruner", {"most": 3}, ValueError),
        ("agilepruner", {"most": float("nan")}, ValueError), ("mmtok", {"image": "half"}, TypeError),
        ("mmtok", {"image": float("nan")}, ValueError),
    ],
)  # fmt: skip
def test_bad_options_are_refused(name, options, error):
    with pytest.raises(error, match=next(iter(options))):
        get_pruner(name, **options)


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_lengths_of_embeddings_and_features_do_not_matter(name, scale):
    tokens = make_tokens(30)
    scaled = dataclasses.replace(tokens, features=tokens.features * scale, embeddings=tokens.embeddings * scale)
    assert kept(name, scaled, 9) == kept(name, tokens, 9)


@every
@pytest.mark.parametrize("family", CASES)
def test_it_runs_on_every_family(name, family):
    case = CASES[family]
    model = case.model()
    if get_pruner(name).needs and not find_family(model).gives_tower_signals:
        pytest.skip("this family gives no signals of its tower")
    with torch.no_grad(), prune(model, name, keep=0.5) as session:
        model.generate(**case.make(model, [[case.kinds - 1]]), max_new_tokens=2, do_sample=False)
    assert session.reports[-1].kept > 0
