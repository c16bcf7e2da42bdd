"""Methods that cover an image, read the question or transport tokens, against released code and plain loops in float64.

The vectors of anchorprune, eadp and prunesid are numbers that the released rules gave for synthetic tokens. Those of
prunesid were made with exact components, and with a patch in the place of the class token.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conftest import Row, make_inputs
from zoo_of_models import CASES
from zooprune import prune
from zooprune.families import find_family
from zooprune.pruners import get_pruner
from zooprune.selection.components import group_by_component
from zooprune.selection.outliers import local_outliers
from zooprune.selection.transport import sinkhorn
from zooprune.tokens import VisualTokens

DATA = Path(__file__).parent / "data"
ANCHOR, EADP, SID = (np.load(DATA / f"{name}.npz") for name in ("anchorprune", "eadp", "prunesid"))
NAMES = ["todre", "tops", "catp", "anchorprune", "eadp", "prunesid", "aot", "recoverable"]
MERGING = ["aot", "recoverable"]
every = pytest.mark.parametrize("name", NAMES)


def of(golden, case):
    prefix = f"case{case}_"
    return {name.removeprefix(prefix): golden[name] for name in golden.files if name.startswith(prefix)}


def named(golden):
    return pytest.mark.parametrize("case", range(int(golden["num_cases"])), ids=lambda n: str(golden[f"case{n}_name"]))


def raster(total, columns):
    place = torch.arange(total)
    return torch.stack([place * 0, place * 0, place // columns, place % columns], dim=-1)


def make_tokens(total, seed=0, columns=6, words=7):
    """Return random tokens in raster order, with everything these methods read."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    def attention():
        return draw(total, 1).mul(2).softmax(0)

    signals = {name: attention() for name in (
        "tower_attention", "tower_attention/-1", "tower_received/0.96", "tower_received/0.23",
        "tower_joint_attention/-1",
    )} | {"tower_joint_keys/-1": draw(total, 12)}  # fmt: skip
    projector = nn.Linear(10, 7, bias=False)
    with torch.no_grad():
        projector.weight.copy_(draw(7, 10))
        features = draw(total, 10)
        embeddings = projector(features)
    return VisualTokens(features, embeddings, projector, raster(total, columns), signals, {"question": draw(words, 7)})


def permuted(tokens, order):
    return dataclasses.replace(
        tokens,
        features=tokens.features[order],
        embeddings=tokens.embeddings[order],
        positions=tokens.positions[order],
        signals={name: values[order] for name, values in tokens.signals.items()},
    )


def cosines(rows, others=None):
    one, other = (
        values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        for values in (rows.double().numpy(), (rows if others is None else others).double().numpy())
    )
    return one @ other.T


def kept(name, tokens, keep, **options):
    return get_pruner(name, **options).select(tokens, keep).index.tolist()


# What all of them have in common


@every
@pytest.mark.parametrize("total", [1, 2, 3, 7, 30])
def test_every_budget_of_every_number_of_tokens_is_met(name, total):
    tokens = make_tokens(total)
    for keep in range(1, total + 1):
        selection = get_pruner(name).select(tokens, keep)
        assert len(selection) == keep
        if keep == total:
            assert selection.merged is None


@every
@pytest.mark.parametrize("seed", range(3))
def test_permuting_tokens_permutes_the_choice(name, seed):
    tokens = make_tokens(36, seed)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(seed))
    for keep in (1, 9, 20):
        one, other = (get_pruner(name).select(given, keep) for given in (tokens, permuted(tokens, order)))
        assert sorted(order[other.index].tolist()) == one.index.tolist()
        if one.merged is not None:
            places = order[other.index].argsort()
            torch.testing.assert_close(other.merged[places], one.merged, rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_decided_in_float32(name, dtype):
    tokens = make_tokens(30)
    question = tokens.context["question"].to(dtype)
    half = dataclasses.replace(
        tokens, features=tokens.features.to(dtype), embeddings=tokens.embeddings.to(dtype),
        projector=lambda x: tokens.projector(x.float()).to(dtype), context={"question": question},
    )  # fmt: skip
    widened = dataclasses.replace(
        half, features=half.features.float(), embeddings=half.embeddings.float(), projector=tokens.projector,
        context={"question": question.float()},
    )  # fmt: skip
    with torch.no_grad():
        for keep in (1, 6, 17):
            one, other = (get_pruner(name).select(given, keep) for given in (half, widened))
            assert torch.equal(one.index, other.index)
            assert (one.into is None) == (other.into is None)
            if one.merged is not None:
                assert torch.equal(one.into, other.into)
                assert one.merged.dtype == dtype
                torch.testing.assert_close(one.merged.float(), other.merged, rtol=2e-2, atol=2e-2)


@every
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


@every
def test_a_prompt_without_text_is_no_trouble(name):
    tokens = dataclasses.replace(make_tokens(30), context={"question": torch.zeros(0, 7)})
    for keep in (1, 9, 29):
        assert len(kept(name, tokens, keep)) == keep


@every
def test_it_says_what_it_reads(name):
    pruner = get_pruner(name)
    bare = dataclasses.replace(make_tokens(6), signals={}, context={})
    with pytest.raises(ValueError, match=rf"{name} reads {pruner.reads()[0]}"):
        pruner.select(bare, 3)
    assert pruner.query_aware == ("question" in pruner.reads())


@every
def test_nan_is_refused_or_never_chosen_silently(name):
    if name == "recoverable":
        pytest.skip("it chooses by signals, and merges what it is given")
    tokens = make_tokens(12)
    broken = dataclasses.replace(
        tokens, features=tokens.features.index_fill(0, torch.tensor([3]), torch.nan),
        embeddings=tokens.embeddings.index_fill(0, torch.tensor([3]), torch.nan),
    )  # fmt: skip
    with pytest.raises(ValueError, match="NaN"):
        get_pruner(name).select(broken, 5)


@pytest.mark.parametrize("name", ["catp", "anchorprune", "eadp"])
def test_the_question_changes_what_is_kept(name):
    tokens = make_tokens(30)
    other = dataclasses.replace(tokens, context={"question": make_tokens(30, seed=9).context["question"]})
    assert kept(name, tokens, 9) != kept(name, other, 9)


@pytest.mark.parametrize("name", MERGING)
def test_merged_rows_reach_the_language_model(name, llava):
    inputs = make_inputs(Row(1, 6))
    with torch.no_grad(), prune(llava, name, keep=8) as session:
        prepared = session.prepare(inputs)
        plain = torch.cat([*find_family(llava).encode(llava, "image", inputs).output.pooler_output])
    rows = torch.cat([one.flatten(0, -2) for one in prepared["mm_encoder_outputs"]["image"].pooler_output])
    assert len(rows) == session.reports[-1].kept == 8
    assert any(not bool((row == plain).all(1).any()) for row in rows)


@every
@pytest.mark.parametrize("family", [name for name in CASES if find_family(CASES[name].model()).gives_tower_signals])
def test_it_runs_on_every_family_that_gives_signals(name, family):
    case = CASES[family]
    model = case.model()
    with torch.no_grad(), prune(model, name, keep=0.5) as session:
        model.generate(**case.make(model, [[case.kinds - 1]]), max_new_tokens=2, do_sample=False)
    assert session.reports[-1].kept > 0


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("tops", {"diversity": -1}, ValueError), ("tops", {"coverage": "much"}, TypeError),
        ("tops", {"coverage": math.inf}, ValueError), ("catp", {"alignment": -0.1}, ValueError),
        ("catp", {"alignment": True}, TypeError), ("anchorprune", {"least": 1.5}, ValueError),
        ("anchorprune", {"most": "half"}, TypeError), ("anchorprune", {"novelty": 3}, ValueError),
        ("anchorprune", {"patience": 0}, ValueError), ("anchorprune", {"patience": 2.0}, ValueError),
        ("eadp", {"whole": 1.5}, ValueError), ("eadp", {"power": -1}, ValueError), ("eadp", {"power": "2"}, TypeError),
        ("aot", {"local": 2}, ValueError), ("aot", {"local": None}, TypeError),
        ("recoverable", {"native": 1}, TypeError),
    ],
)  # fmt: skip
def test_bad_options_are_refused(name, options, error):
    with pytest.raises(error, match=next(iter(options))):
        get_pruner(name, **options)


# ToDRE, TOPS, CATP


@pytest.mark.parametrize("keep", [1, 8, 20])
def test_todre_starts_at_most_attention_and_goes_on_by_sums_of_cosines(keep):
    tokens = make_tokens(30)
    cosine = cosines(tokens.embeddings)
    picked = [int(tokens.signals["tower_attention/-1"].argmax())]
    while len(picked) < keep:
        left = [token for token in range(30) if token not in picked]
        picked.append(min(left, key=lambda token: sum(cosine[token, other] for other in picked)))
    assert kept("todre", tokens, keep) == sorted(picked)


@pytest.mark.parametrize("keep", [1, 8, 20, 29])
@pytest.mark.parametrize("weights", [{}, {"diversity": 0.2, "coverage": 1.0}, {"coverage": 0}])
def test_tops_picks_by_the_sum_of_its_three_scores(keep, weights):
    tokens = make_tokens(30)
    cosine, attention = cosines(tokens.embeddings), tokens.signals["tower_attention"][:, 0].double().numpy()
    picked = [int(attention.argmax())]

    def rescaled(values):
        low, high = min(values.values()), max(values.values())
        return {token: (value - low) / (high - low) if high > low else 0.0 for token, value in values.items()}

    while len(picked) < keep:
        left = [token for token in range(30) if token not in picked]
        near = {token: max(cosine[token, other] for other in picked) for token in range(30)}
        given = rescaled({token: attention[token] for token in left})
        covers = rescaled(
            {token: sum(max(0.0, cosine[token, other] - near[other]) for other in left) for token in left}
        )
        unlike = rescaled({token: 1 - near[token] for token in left})
        total = {
            token: given[token] + weights.get("coverage", 0.5) * covers[token]
            + weights.get("diversity", 0.5) * unlike[token]
            for token in left
        }  # fmt: skip
        picked.append(max(left, key=total.get))
    assert kept("tops", tokens, keep, **weights) == sorted(picked)


@pytest.mark.parametrize("keep", [1, 8, 20])
@pytest.mark.parametrize("alignment", [0.0, 0.7, 30.0])
def test_catp_picks_by_coverage_and_text(keep, alignment):
    tokens = make_tokens(30)
    similarity = (cosines(tokens.embeddings) + 1) / 2
    text = (cosines(tokens.embeddings, tokens.context["question"].mean(0, keepdim=True))[:, 0] + 1) / 2
    picked = []
    for _ in range(keep):
        near = [max((similarity[token, other] for other in picked), default=0.0) for token in range(30)]
        left = [token for token in range(30) if token not in picked]
        worth = {
            token: sum(max(0.0, similarity[token, other] - near[other]) for other in range(30))
            + alignment * text[token]
            for token in left
        }
        picked.append(next(token for token in left if worth[token] >= max(worth.values()) - 1e-9))
    assert kept("catp", tokens, keep, alignment=alignment) == sorted(picked)


# AnchorPrune, EADP, PruneSID


@named(ANCHOR)
def test_anchorprune_keeps_what_the_released_rules_keep(case):
    data = of(ANCHOR, case)
    embeddings, keep = torch.tensor(data["embeddings"].astype(np.float32)), int(data["k"])
    tokens = VisualTokens(
        embeddings, embeddings, nn.Identity(), raster(len(embeddings), 10),
        {"tower_attention": torch.tensor(data["attention"])[:, None]},
        {"question": torch.tensor(data["question"].astype(np.float32))},
    )  # fmt: skip
    pruner = get_pruner("anchorprune", keep=keep)
    anchor = pruner.anchor(pruner.score(tokens), embeddings, keep)
    assert anchor.tolist() == data["anchor"].tolist()
    assert pruner.select(tokens, keep).index.tolist() == data["kept"].tolist()


def test_an_anchor_keeps_its_bounds():
    tokens = make_tokens(30)
    relevance = cosines(tokens.embeddings, tokens.context["question"]).max(1)
    ranked = np.argsort(-relevance)
    # Nothing is ever new, so that the anchor takes all it may; then it takes the least.
    assert kept("anchorprune", tokens, 8, novelty=2.0, most=1.0) == sorted(ranked[:8])
    attention = tokens.signals["tower_attention"][:, 0].double().numpy()
    cosine, picked = cosines(tokens.embeddings), list(ranked[:2])
    while len(picked) < 8:
        left = [token for token in range(30) if token not in picked]
        picked.append(max(left, key=lambda token: attention[token] * min(1 - cosine[token, other] for other in picked)))
    assert kept("anchorprune", tokens, 8, least=0.25, most=0.0) == sorted(picked)


@named(EADP)
def test_eadp_rates_and_keeps_as_the_released_code_does(case):
    data = of(EADP, case)
    embeddings, keep = torch.tensor(data["embeddings"].astype(np.float32)), int(data["k"])
    tokens = VisualTokens(
        embeddings, embeddings, nn.Identity(), raster(len(embeddings), int(data["grid"][1])), {},
        {"question": torch.tensor(data["question"].astype(np.float32))},
    )  # fmt: skip
    pruner = get_pruner("eadp", keep=keep, whole=float(data["whole"]), power=float(data["power"]))
    selection = pruner.select(tokens, keep)
    np.testing.assert_allclose(selection.scores, data["relevance"], rtol=1e-4, atol=1e-5)
    assert pruner.choose(selection.scores, tokens, keep).tolist() == data["kept_order"].tolist()
    assert selection.index.tolist() == sorted(data["kept_order"].tolist())


@named(SID)
def test_prunesid_keeps_what_the_released_rules_keep(case):
    data = of(SID, case)
    features, keep = torch.tensor(data["features"].astype(np.float32)), int(data["k"])
    tokens = VisualTokens(
        features, features, nn.Identity(), raster(len(features), 10),
        {"tower_attention": torch.tensor(data["attention"])[:, None]},
    )  # fmt: skip
    assert group_by_component(features, max(1, keep // 4)).tolist() == data["groups"].tolist()
    assert kept("prunesid", tokens, keep) == data["kept"].tolist()


# AOT


@pytest.mark.parametrize("keep", [1, 9, 18, 40])
def test_aot_takes_anchors_from_every_window_and_from_the_whole(keep):
    tokens = make_tokens(81, columns=9)
    shallow, deep = (tokens.signals[f"tower_received/{layer}"][:, 0].tolist() for layer in ("0.23", "0.96"))
    chosen = []
    for down in range(3):
        for right in range(3):
            window = [(3 * down + row) * 9 + 3 * right + column for row in range(3) for column in range(3)]
            chosen += sorted(window, key=lambda token: -shallow[token])[: keep // 2 // 9]
    others = sorted(set(range(81)) - set(chosen), key=lambda token: -deep[token])
    assert kept("aot", tokens, keep) == sorted(chosen + others[: keep - len(chosen)])


def test_aot_merges_as_it_says():
    tokens = make_tokens(36)
    selection = get_pruner("aot").select(tokens, 10)
    index = selection.index
    others = torch.tensor([token for token in range(36) if token not in index.tolist()])
    cosine = torch.tensor(cosines(tokens.embeddings[others], tokens.embeddings[index]))
    place = tokens.positions[:, 2:].double() / 5
    cost = 1 - cosine + 0.5 * torch.cdist(place[others], place[index])
    kernel, rows, columns = (-cost / 0.1).exp(), torch.ones(26).double(), torch.ones(10).double()
    for _ in range(100):
        rows = 1 / 26 / (kernel @ columns)
        columns = 1 / 10 / (kernel.T @ rows)
    plan, embeddings = rows[:, None] * kernel * columns, tokens.embeddings.double()
    transported = (embeddings[index] + plan.T @ embeddings[others]) / (1 + plan.sum(0)[:, None])
    nearest = cosine.argmax(1)
    for number in range(10):
        mean = torch.cat([embeddings[index[number]][None], embeddings[others[nearest == number]]]).mean(0)
        expected = 0.9 * transported[number] + 0.1 * mean
        torch.testing.assert_close(selection.merged[number].double(), expected, rtol=1e-4, atol=1e-5)
        assert (selection.into == number).nonzero()[:, 0].tolist() == sorted(
            [int(index[number]), *others[nearest == number].tolist()]
        )


def test_aot_merges_inside_a_tile_first():
    """Two frames of two tiles each, which are wider than high; a separator shows no patch."""
    grid = torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3), torch.arange(6))
    positions = torch.cat([grid, torch.tensor([[0, 1, 2, -1]])])
    tokens = dataclasses.replace(make_tokens(73, words=3), positions=positions)
    shallow, deep = (tokens.signals[f"tower_received/{layer}"][:, 0].tolist() for layer in ("0.23", "0.96"))
    window = [(*cell[:2], cell[2], cell[3] // 2) for cell in grid.tolist()]
    local = [max((t for t in range(72) if window[t] == one), key=lambda t: shallow[t]) for one in sorted(set(window))]
    others = sorted(set(range(73)) - set(local), key=lambda token: -deep[token])
    selection = get_pruner("aot", local=0.9).select(tokens, 41)
    assert selection.index.tolist() == sorted(local + others[:5])
    index, rest = selection.index, torch.tensor(sorted(others[5:]))
    place = positions[:, 2:].double() / torch.tensor([2, 5])
    apart = torch.tensor([
        [
            float((place[one] - place[other]).norm())
            if positions[one, :2].equal(positions[other, :2]) and 72 not in (int(one), int(other))
            else math.sqrt(2)
            for other in index
        ]
        for one in rest
    ])  # fmt: skip
    cost = 1 - torch.tensor(cosines(tokens.embeddings[rest], tokens.embeddings[index])) + 0.5 * apart
    plan, embeddings = sinkhorn(cost).double(), tokens.embeddings.double()
    moved = (embeddings[index] + plan.T @ embeddings[rest]) / (1 + plan.sum(0)[:, None])
    nearest = torch.stack([embeddings[selection.into == number].mean(0) for number in range(41)])
    torch.testing.assert_close(selection.merged.double(), 0.9 * moved + 0.1 * nearest, rtol=1e-4, atol=1e-5)


def test_aot_leaves_separators_out_of_windows():
    tokens = make_tokens(18)
    separators = dataclasses.replace(tokens, positions=torch.tensor([[0, 0, -1, -1]]).expand(18, -1))
    deep = tokens.signals["tower_received/0.96"][:, 0]
    assert kept("aot", separators, 5) == deep.topk(5).indices.sort().values.tolist()


# Recoverable Compression


def outstanding(total=100, seed=0):
    """Return tokens of which some stand out by attention, some by the text, and some among the rest."""
    tokens = make_tokens(total, seed)
    generator = torch.Generator().manual_seed(seed)
    attention = (3 * torch.randn(total, 1, generator=generator)).softmax(0)
    return dataclasses.replace(tokens, signals=dict(tokens.signals) | {"tower_joint_attention/-1": attention})


def test_recoverable_follows_its_steps():
    """Against the steps in plain loops; only the outliers are those of the library, which are tested elsewhere."""
    tokens, total = outstanding(), 100
    attention = tokens.signals["tower_joint_attention/-1"][:, 0]
    text = torch.tensor(cosines(tokens.embeddings, tokens.context["question"].mean(0, keepdim=True))[:, 0])
    seen = sorted(range(total), key=lambda token: -attention[token])[: int(local_outliers(attention, 20).sum())]
    lowered = text.clone()
    lowered[seen] = text.min()
    count = int((total - len(seen)) * int(local_outliers(lowered.float(), 20).sum()) / total)
    left = [token for token in range(total) if token not in seen]
    asked = sorted(left, key=lambda token: -float(text[token]))[:count]
    rest = sorted(set(left) - set(asked), key=lambda token: -attention[token])
    centres = rest[: int(local_outliers(attention[rest], 10).sum())]
    assert seen and asked and centres
    host = next(token for token in rest if token not in centres)
    selection = get_pruner("recoverable", native=True, keep=9).select(tokens, 9)
    assert selection.index.tolist() == sorted([*seen, *asked, *centres, host])
    keys = cosines(tokens.signals["tower_joint_keys/-1"])
    rows, takers = {token: tokens.embeddings[token].double() for token in [*seen, *asked]}, {}
    features, weight = tokens.features.double(), tokens.projector.weight.detach().double()
    for centre in centres:
        closest = sorted(
            (token for token in rest if token != centre),
            key=lambda token: -(keys[centre, token] + 50 / 768**0.5 * float(text[token])),
        )[:32]
        rows[centre] = weight @ (features[centre] + sum(float(attention[token]) * features[token] for token in closest))
        for token in closest:
            takers.setdefault(token, []).append((keys[centre, token], centre))
    loose = [token for token in rest if token not in centres]
    rows[host] = weight @ sum(float(attention[token]) * features[token] for token in loose)
    expected = torch.stack([rows[token] for token in selection.index.tolist()])
    torch.testing.assert_close(selection.merged.double(), expected, rtol=1e-4, atol=1e-5)
    for token in loose:
        holder = max(takers[token])[1] if token in takers and token != host else host
        assert selection.into[token] == selection.index.tolist().index(holder)
    assert get_pruner("recoverable").is_exact() and not get_pruner("recoverable", native=True).is_exact()


def test_recoverable_shares_a_budget_among_its_parts():
    tokens = outstanding()
    native = get_pruner("recoverable", native=True).select(tokens, 9)
    attention = tokens.signals["tower_joint_attention/-1"][:, 0]
    for keep in (1, 2, 5, len(native), 60, 99):
        selection = get_pruner("recoverable").select(tokens, keep)
        assert len(selection) == keep
        assert int(attention.argmax()) in selection.index.tolist()
    # A part of one token is a centre, without a rest token that would hold what the centre does not take in.
    few = get_pruner("recoverable").select(tokens, 6)
    place = [number for number in range(6) if not torch.equal(few.merged[number], tokens.embeddings[few.index[number]])]
    assert len(place) == 1
    assert (few.into == place[0]).sum() == 33 and (few.into == -1).sum() == 100 - 6 - 32
    same = get_pruner("recoverable").select(tokens, len(native))
    assert torch.equal(same.index, native.index) and torch.equal(same.merged, native.merged)


def test_recoverable_without_outliers_keeps_what_is_attended_to():
    tokens = make_tokens(30)
    even = {"tower_joint_attention/-1": torch.linspace(0.01, 0.05, 30)[:, None]}
    tokens = dataclasses.replace(tokens, signals=dict(tokens.signals) | even, context={"question": torch.zeros(0, 7)})
    assert kept("recoverable", tokens, 4) == [26, 27, 28, 29]
    selection = get_pruner("recoverable", native=True).select(tokens, 4)
    assert selection.index.tolist() == [29] and selection.merged is None


# Cen-Prune


def plain_geometry(embeddings):
    """Return centred cosines, and minus the mean cosine to all other tokens brought to [0, 1], in float64."""
    raw = cosines(embeddings)
    total = len(raw)
    unlike = [-sum(raw[one, other] for other in range(total) if other != one) / (total - 1) for one in range(total)]
    low, high = min(unlike), max(unlike)
    return cosines(embeddings.double() - embeddings.double().mean(0)), [(one - low) / (high - low) for one in unlike]


hosts = pytest.mark.parametrize("name", ["zoo", "diversity", "divprune", "cdpruner"])
linear = pytest.mark.filterwarnings("ignore:this projector is linear")


@hosts
@pytest.mark.parametrize(("centred", "distinctive"), [(True, True), (True, False), (False, True), (False, False)])
def test_cen_prune_changes_the_geometry_of_its_host(name, centred, distinctive):
    tokens = make_tokens(30)
    # What tokens have in common makes the two geometries differ.
    tokens = dataclasses.replace(tokens, embeddings=tokens.embeddings + 2.0)
    pruner = get_pruner(name, centred=centred, distinctive=distinctive)
    drawn = torch.rand(30, generator=torch.Generator().manual_seed(0))
    scores = (drawn - drawn.min()) / (drawn.max() - drawn.min()) if name == "zoo" else pruner.score(tokens)
    cosine, unlike = plain_geometry(tokens.embeddings)
    cosine = cosine if centred else cosines(tokens.embeddings)
    worth = scores.double().numpy() * (unlike if distinctive else 1.0)
    # Embeddings of seven channels have no determinant above zero of more than seven tokens.
    keep = 7 if name == "cdpruner" else 12
    expected = []
    while len(expected) < keep:
        left = [token for token in range(30) if token not in expected]
        if name == "cdpruner":
            kernel = worth[:, None] * cosine * worth
            gains = {token: np.linalg.det(kernel[np.ix_([*expected, token], [*expected, token])]) for token in left}
        else:
            # DivPrune begins with the token that is farthest from its nearest other one.
            kept = expected or (range(30) if name == "divprune" else [])
            near = {
                token: max((cosine[token, other] for other in kept if other != token), default=0.0) for token in left
            }
            gains = {token: worth[token] * (1 - near[token]) for token in left}
        expected.append(max(left, key=gains.get))
    for count in range(1, keep + 1):
        chosen = pruner.choose(scores, tokens, count)
        kept = sorted(chosen.tolist()) if isinstance(chosen, torch.Tensor) else chosen.index.tolist()
        assert kept == sorted(expected[:count])
    if name != "cdpruner":
        # Cosines without the mean do not tell where dropped tokens belong.
        assert (chosen.cosines is None) == centred


@pytest.mark.parametrize("name", ["zoo", "sensitivity", "diversity", "divprune", "cdpruner"])
def test_options_of_the_geometry_come_last_and_must_be_true_or_false(name):
    for option in ("centred", "distinctive"):
        with pytest.raises(TypeError, match=f"{option} must be True or False"):
            get_pruner(name, **{option: 1})
    with pytest.raises(ValueError, match="keep"):
        get_pruner(name, keep=0)


@hosts
@linear
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_geometry_is_worked_out_in_float32(name, dtype):
    tokens = make_tokens(30)
    half = dataclasses.replace(tokens, embeddings=tokens.embeddings.to(dtype))
    widened = dataclasses.replace(half, embeddings=half.embeddings.float())
    pruner = get_pruner(name, centred=True, distinctive=True)
    assert torch.equal(pruner.select(half, 9).index, pruner.select(widened, 9).index)


@hosts
@linear
def test_tokens_that_are_all_alike_have_no_geometry(name):
    tokens = make_tokens(12)
    alike = dataclasses.replace(tokens, embeddings=tokens.embeddings[:1].expand(12, -1).contiguous())
    for total in (alike, alike[torch.arange(1)]):
        pruner = get_pruner(name, centred=True, distinctive=True)
        assert len(pruner.select(total, min(5, len(total)))) == min(5, len(total))
