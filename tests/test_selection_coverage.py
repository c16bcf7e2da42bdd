"""Coverage, dispersion, expansion, components, outliers, smoothing and transport, against plain loops in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zooprune.selection.components import effective_rank, group_by_component, suppress
from zooprune.selection.expansion import expand
from zooprune.selection.facility import coverage_gains, facility_location, greedy_coverage
from zooprune.selection.max_sum import greedy_max_sum
from zooprune.selection.outliers import local_outliers
from zooprune.selection.smoothing import smooth
from zooprune.selection.transport import sinkhorn

SEEDS = st.integers(0, 10**6)


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shuffled(count, seed):
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def cosines(rows):
    rows = rows.double().numpy()
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T


def first_of_largest(values, taken):
    """Return the lowest index of a largest value; values that differ by rounding only are the same."""
    values = [-math.inf if token in taken else value for token, value in enumerate(values)]
    return next(token for token, value in enumerate(values) if value >= max(values) - 1e-9)


# Pickers by rows: each takes (rows, weights, keep)


def max_sum(rows, weights, keep):
    return greedy_max_sum(rows, weights.argmax(), keep)


def plain_max_sum(rows, weights, keep):
    cosine, picked = cosines(rows), [int(weights.argmax())]
    while len(picked) < keep:
        picked.append(
            first_of_largest([-sum(cosine[token, other] for other in picked) for token in range(len(rows))], picked)
        )
    return picked


def facility(rows, weights, keep):
    return facility_location(rows, keep, weights=weights)


def plain_facility(rows, weights, keep, bonus=None):
    similarity, picked = (cosines(rows) + 1) / 2, []
    total = range(len(rows))
    while len(picked) < keep:
        covered = [max((similarity[token, other] for other in picked), default=0.0) for token in total]
        gains = [
            sum(float(weights[token]) * max(0.0, similarity[candidate, token] - covered[token]) for token in total)
            + (0.0 if bonus is None else float(bonus[candidate]))
            for candidate in total
        ]
        picked.append(first_of_largest(gains, picked))
    return picked


def expansion(rows, weights, keep):
    return expand(rows, weights, weights.argmax()[None], keep)


def plain_expansion(rows, weights, keep, start=None):
    cosine, picked = cosines(rows), [int(weights.argmax())] if start is None else list(start)
    while len(picked) < keep:
        gains = [
            float(weights[token]) * min(1 - cosine[token, other] for other in picked) for token in range(len(rows))
        ]
        picked.append(first_of_largest(gains, picked))
    return picked


PICKERS = {
    "max sum": (max_sum, plain_max_sum),
    "facility": (facility, plain_facility),
    "expansion": (expansion, plain_expansion),
}
pickers = pytest.mark.parametrize("name", PICKERS)


@pickers
@settings(max_examples=25, deadline=None)
@given(total=st.integers(1, 14), seed=SEEDS, data=st.data())
def test_picks_are_those_of_the_definition(name, total, seed, data):
    rows, weights = drawn(total, 6, seed=seed), drawn(total, seed=seed + 1).abs() + 0.1
    keep = data.draw(st.integers(1, total))
    ours, plain = PICKERS[name]
    assert ours(rows, weights, keep).tolist() == plain(rows, weights, keep)


@pickers
@settings(max_examples=20, deadline=None)
@given(total=st.integers(2, 30), seed=SEEDS)
def test_permuting_tokens_permutes_the_picks(name, total, seed):
    rows, weights, order = drawn(total, 8, seed=seed), drawn(total, seed=seed + 1).abs(), shuffled(total, seed)
    ours = PICKERS[name][0]
    again = ours(rows[order], weights[order], total // 2)
    assert torch.equal(order[again], ours(rows, weights, total // 2))


@pickers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_in_float32(name, dtype):
    rows, weights = drawn(40, 8, seed=0).to(dtype), drawn(40, seed=1).abs()
    ours = PICKERS[name][0]
    assert torch.equal(ours(rows, weights, 15), ours(rows.float(), weights, 15))
    assert torch.equal(ours(rows, weights, 15), ours(rows, weights, 15))


@pickers
@settings(max_examples=20, deadline=None)
@given(total=st.integers(1, 20), seed=SEEDS)
def test_all_tokens_are_picked_once_where_the_budget_allows(name, total, seed):
    rows, weights = drawn(total, 3, seed=seed), drawn(total, seed=seed + 1).abs()
    rows[::3] = 0
    picked = PICKERS[name][0](rows, weights, total + 3)
    assert sorted(picked.tolist()) == list(range(total))


@pytest.mark.parametrize("name", ["facility", "expansion"])
@settings(max_examples=20, deadline=None)
@given(distinct=st.integers(2, 8), seed=SEEDS)
def test_copies_wait_until_all_others_are_picked(name, distinct, seed):
    rows = drawn(distinct, 12, seed=seed)
    source = shuffled(3 * distinct, seed) % distinct
    weights = drawn(distinct, seed=seed + 1).abs() + 0.1
    picked = PICKERS[name][0](rows[source], weights[source], 3 * distinct)
    # A token that is well covered by others of little worth adds nothing either, so only the first pick is compared.
    firsts = picked[:distinct] if name == "expansion" else picked[:2]
    assert len(set(source[firsts].tolist())) == len(firsts)


@pickers
@pytest.mark.parametrize(
    ("rows", "keep", "message"),
    [
        (torch.ones(3), 1, "must be"), (torch.ones(2, 0), 1, "not empty"), (torch.ones(2, 2), 0, "keep=0"),
        (torch.full((2, 2), torch.nan), 1, "^embeddings contain NaN"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(name, rows, keep, message):
    with pytest.raises(ValueError, match=message):
        PICKERS[name][0](rows, torch.ones(len(rows)), keep)


def test_a_start_that_does_not_fit_is_refused():
    for start in (torch.arange(0), torch.arange(3)):
        with pytest.raises(ValueError, match=r"from 1 to keep=2"):
            expand(torch.eye(4), torch.ones(4), start, 2)


@settings(max_examples=25, deadline=None)
@given(total=st.integers(2, 14), seed=SEEDS, data=st.data())
def test_a_bonus_and_a_start_are_what_they_say(total, seed, data):
    rows, weights = drawn(total, 6, seed=seed), drawn(total, seed=seed + 1).abs() + 0.1
    keep, bonus = data.draw(st.integers(1, total)), drawn(total, seed=seed + 2).abs()
    expected = plain_facility(rows, torch.ones(total), keep, bonus)
    assert facility_location(rows, keep, bonus=bonus).tolist() == expected
    start = shuffled(total, seed)[:keep]
    assert expand(rows, weights, start, keep).tolist() == start.tolist()
    keep = min(total, keep + 3)
    assert expand(rows, weights, start, keep).tolist() == plain_expansion(rows, weights, keep, start.tolist())


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_what_all_tokens_count_alike_changes_nothing(scale):
    rows, weights = drawn(20, 8, seed=0), drawn(20, seed=1).abs()
    assert torch.equal(facility(rows, weights * scale, 12), facility(rows, weights, 12))
    assert facility(rows, weights * 0, 4).tolist() == [0, 1, 2, 3]


# Coverage of other things than tokens


def check_coverage(picked, similarity, weights, worth, bonus):
    """Check that every pick has the largest value, or one that rounding does not tell from it."""
    similarity, weights, worth, bonus = (part.double().numpy() for part in (similarity, weights, worth, bonus))
    covered, left = np.zeros(similarity.shape[1]), list(range(len(similarity)))
    for token in picked:
        gains = np.array([weights @ np.maximum(row - covered, 0) for row in similarity])
        value = gains * worth + bonus
        assert value[token] >= value[left].max() * (1 - 1e-5) - 1e-5
        if not gains.any() and not bonus.any():
            assert token == left[0]
        left.remove(token)
        covered = np.maximum(covered, similarity[token])


def coverage_problem(total, things, seed):
    similarity = drawn(total, things, seed=seed).clamp(-1, 1)
    return similarity, drawn(things, seed=seed + 1).abs() + 0.1


@settings(max_examples=50, deadline=None)
@given(total=st.integers(1, 80), things=st.integers(1, 12), seed=SEEDS, data=st.data())
def test_coverage_of_things_is_that_of_the_definition(total, things, seed, data):
    similarity, weights = coverage_problem(total, things, seed)
    worth, bonus = drawn(total, seed=seed + 2).abs() + 0.1, drawn(total, seed=seed + 3).abs()
    keep = data.draw(st.integers(1, total))
    ones, zeros = torch.ones(total), torch.zeros(total)
    for options in ({}, {"worth": worth}, {"bonus": bonus}, {"worth": worth, "bonus": bonus}):
        picked = greedy_coverage(similarity, keep, weights=weights, **options).tolist()
        assert len(picked) == keep
        check_coverage(picked, similarity, weights, options.get("worth", ones), options.get("bonus", zeros))


@pytest.mark.parametrize(("total", "keep"), [(300, 100), (700, 64)])
def test_gains_that_are_not_worked_out_anew_would_not_have_won(total, keep):
    """The picks are those of a loop that works out all gains at every step."""
    rows = F.normalize(drawn(total, 16, seed=total), dim=-1)
    # Groups of tokens that are much alike, so that many gains are close to each other.
    rows = F.normalize(rows[torch.arange(total) % 40] + 0.05 * drawn(total, 16, seed=1), dim=-1)
    similarity, weights = rows @ rows.T, torch.ones(total)
    covered, closed, expected = torch.zeros(total), torch.zeros(total, dtype=torch.bool), []
    for _ in range(keep):
        gains = coverage_gains(similarity, covered, weights, torch.empty_like(similarity))
        gains[closed] = -torch.inf
        expected.append(int((gains >= gains.max() * (1 - 1e-6) - 1e-6).int().argmax()))
        closed[expected[-1]] = True
        covered = torch.maximum(covered, similarity[expected[-1]])
    assert greedy_coverage(similarity, keep, weights=weights, tie=1e-6).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(total=st.integers(2, 9), things=st.integers(1, 8), seed=SEEDS, data=st.data())
def test_coverage_is_not_far_from_the_best(total, things, seed, data):
    similarity, weights = coverage_problem(total, things, seed)
    keep = data.draw(st.integers(1, total))

    def coverage(picked):
        return float(similarity[list(picked)].amax(0).clamp_min(0) @ weights)

    best = max(coverage(subset) for subset in itertools.combinations(range(total), keep))
    assert coverage(greedy_coverage(similarity, keep, weights=weights).tolist()) >= (1 - 1 / math.e) * best - 1e-6


def test_gains_that_rounding_tells_apart_are_a_tie():
    similarity = torch.tensor([[0.5, 0.0], [0.5 + 3e-8, 0.0], [0.0, 0.5 + 1e-4]])
    ones = torch.ones(2)
    assert greedy_coverage(similarity[:2], 1, weights=ones).tolist() == [0]
    assert greedy_coverage(similarity, 3, weights=ones).tolist() == [2, 0, 1]
    assert greedy_coverage(similarity, 3, weights=ones, tie=1e-3).tolist() == [0, 2, 1]
    # What ties is the gain, before it is multiplied.
    assert greedy_coverage(similarity, 3, weights=ones, worth=torch.tensor([1.0, 1.0, 2.0]), tie=1e-3).tolist()[0] == 2


# Groups and suppression


@settings(max_examples=25, deadline=None)
@given(total=st.integers(1, 20), width=st.integers(2, 20), groups=st.integers(1, 6), seed=SEEDS)
def test_groups_are_those_of_the_largest_loadings(total, width, groups, seed):
    features = drawn(total, width, seed=seed)
    samples = 1 / (1 + np.exp(-features.double().numpy().T))
    samples -= samples.mean(0)
    _, strength, loadings = np.linalg.svd(samples, full_matrices=False)
    used = min(groups, int((strength > 1e-6).sum()))
    found = group_by_component(features, used)
    weights = np.abs(loadings[:used].T)
    # Rounding differs from library to library, so that a close second is as good.
    assert all(weights[token, group] > weights[token].max() - 1e-6 for token, group in enumerate(found.tolist()))


def test_groups_follow_their_tokens_and_read_float32():
    features, order = drawn(30, 16, seed=0), shuffled(30, 1)
    assert torch.equal(group_by_component(features[order], 5), group_by_component(features, 5)[order])
    half = features.bfloat16()
    assert torch.equal(group_by_component(half, 5), group_by_component(half.float(), 5))


@pytest.mark.parametrize("total", [2, 12])
def test_components_without_variance_have_no_token(total):
    """Three channels without their mean have two components, and tokens that are all alike have a single component."""
    features = drawn(total, 3, seed=0)
    assert set(group_by_component(features, 3).tolist()) <= {0, 1}
    assert group_by_component(features[:1].expand(total, -1), 3).tolist() == [0] * total
    assert group_by_component(torch.zeros(total, 3), 3).tolist() == [0] * total


@settings(max_examples=25, deadline=None)
@given(total=st.integers(1, 20), seed=SEEDS, threshold=st.floats(-1, 1))
def test_what_is_left_suppresses_all_that_comes_later(total, seed, threshold):
    similarity, order = torch.tensor(cosines(drawn(total, 3, seed=seed))).float(), shuffled(total, seed)
    left = []
    for token in order.tolist():
        if all(similarity[other, token] <= threshold for other in left):
            left.append(token)
    assert suppress(similarity, order, threshold).nonzero()[:, 0].tolist() == sorted(left)
    own, left = drawn(total, seed=seed + 1).tanh(), []
    for token in order.tolist():
        if all(similarity[other, token] <= own[other] for other in left):
            left.append(token)
    assert suppress(similarity, order, own[:, None]).nonzero()[:, 0].tolist() == sorted(left)


def test_what_is_as_similar_as_the_threshold_stays():
    similarity = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    assert suppress(similarity, torch.arange(2), 0.5).tolist() == [True, True]


def plain_effective_rank(features):
    rows = features.double().numpy()
    strengths = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    shares = strengths[strengths > 1e-9] / strengths.sum()
    return math.exp(-(shares * np.log(shares)).sum())


@settings(max_examples=30, deadline=None)
@given(total=st.integers(2, 40), width=st.integers(2, 40), rank=st.integers(1, 6), seed=SEEDS)
def test_the_effective_rank_is_that_of_the_definition(total, width, rank, seed):
    features = drawn(total, width, seed=seed)
    low = drawn(total, rank, seed=seed) @ drawn(rank, width, seed=seed + 1) + 3.0
    for given_features in (features, low):
        found = float(effective_rank(given_features))
        assert found == pytest.approx(plain_effective_rank(given_features), rel=1e-4)
        assert 1 - 1e-6 <= found <= min(total, width) + 1e-3
        order = shuffled(total, seed)
        assert float(effective_rank(given_features[order])) == pytest.approx(found, rel=1e-5)
    half = features.bfloat16()
    assert torch.equal(effective_rank(half), effective_rank(half.float()))


def test_features_without_spread_have_an_effective_rank_of_one():
    assert float(effective_rank(torch.ones(5, 3))) == 1.0
    assert float(effective_rank(torch.ones(1, 3))) == 1.0
    assert float(effective_rank(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="NaN"):
        effective_rank(torch.full((2, 2), torch.nan))


# Outliers


def plain_outliers(values, neighbours):
    values = values.double().numpy()
    near = min(neighbours, len(values) - 1)
    others = [
        sorted((abs(values - mine)[j], j) for j in range(len(values)) if j != i)[:near] for i, mine in enumerate(values)
    ]
    radius = [others[i][-1][0] for i in range(len(values))]
    density = [1 / (np.mean([max(away, radius[j]) for away, j in others[i]]) + 1e-10) for i in range(len(values))]
    return [np.mean([density[j] for _, j in others[i]]) / density[i] > 1.5 for i in range(len(values))]


@settings(max_examples=40, deadline=None)
@given(total=st.integers(2, 50), neighbours=st.integers(1, 20), seed=SEEDS)
def test_outliers_are_those_of_the_definition(total, neighbours, seed):
    values = drawn(total, seed=seed).mul(2).softmax(0)
    assert local_outliers(values, neighbours).tolist() == plain_outliers(values, neighbours)
    order = shuffled(total, seed)
    assert torch.equal(local_outliers(values[order], neighbours), local_outliers(values, neighbours)[order])


def test_few_and_equal_numbers_have_no_outlier():
    assert local_outliers(torch.ones(1), 20).tolist() == [False]
    assert not local_outliers(torch.ones(30), 20).any()
    assert local_outliers(torch.cat([torch.linspace(0, 1, 30), torch.tensor([9.0])]), 5).nonzero().tolist() == [[30]]


# Smoothing


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 6), columns=st.integers(2, 6), tiles=st.integers(1, 3), seed=SEEDS)
def test_whole_tiles_are_smoothed_as_a_convolution_does_it(rows, columns, tiles, seed):
    values = drawn(tiles, rows, columns, seed=seed)
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(tiles), torch.arange(rows), torch.arange(columns))
    step = torch.tensor([-1.0, 0.0, 1.0]).double()
    kernel = torch.exp(-(step[:, None] ** 2 + step**2) / 2)
    padded = F.pad(values[:, None].double(), (1, 1, 1, 1), mode="reflect")
    expected = F.conv2d(padded, (kernel / kernel.sum())[None, None]).flatten()
    order = shuffled(len(grid), seed)
    np.testing.assert_allclose(smooth(values.flatten()[order], grid[order]), expected[order], rtol=0, atol=1e-6)


def test_missing_neighbours_count_as_the_token_itself():
    positions = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 2], [0, 0, -1, -1], [0, 0, -1, 1], [0, 0, 1, -1]])
    values = torch.tensor([3.0, 5.0, 7.0, 9.0, 11.0])
    torch.testing.assert_close(smooth(values, positions), values)


# Transport


def plain_sinkhorn(cost, temperature, iterations):
    kernel = np.exp(-cost.double().numpy() / temperature)
    rows, columns = np.ones(kernel.shape[0]), np.ones(kernel.shape[1])
    for _ in range(iterations):
        rows = 1 / len(rows) / (kernel @ columns)
        columns = 1 / len(columns) / (kernel.T @ rows)
    return rows[:, None] * kernel * columns


@settings(max_examples=25, deadline=None)
@given(sources=st.integers(1, 12), targets=st.integers(1, 12), seed=SEEDS, iterations=st.integers(1, 60))
def test_the_plan_is_that_of_the_plain_iterations(sources, targets, seed, iterations):
    cost = drawn(sources, targets, seed=seed).abs()
    plan = sinkhorn(cost, temperature=0.2, iterations=iterations)
    np.testing.assert_allclose(plan, plain_sinkhorn(cost, 0.2, iterations), rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(plan.sum(0), np.full(targets, 1 / targets), rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(sources=st.integers(2, 12), targets=st.integers(2, 12), seed=SEEDS)
def test_the_plan_follows_its_tokens_and_leaves_everybody_its_share(sources, targets, seed):
    cost = drawn(sources, targets, seed=seed).abs()
    plan = sinkhorn(cost, temperature=0.5, iterations=300)
    np.testing.assert_allclose(plan.sum(1), np.full(sources, 1 / sources), rtol=1e-3)
    rows, columns = shuffled(sources, seed), shuffled(targets, seed)
    again = sinkhorn(cost[rows][:, columns], temperature=0.5, iterations=300)
    torch.testing.assert_close(again, plan[rows][:, columns], rtol=1e-4, atol=1e-7)


def test_a_cold_plan_is_a_matching():
    """Kernels of such costs are all zero in float32."""
    cost = torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [3.0, 3.0, 1.0]])
    torch.testing.assert_close(sinkhorn(cost, temperature=1e-3), torch.eye(3) / 3)


@pytest.mark.parametrize(
    ("cost", "options", "message"),
    [
        (torch.ones(3), {}, "must be"), (torch.full((2, 2), torch.nan), {}, "NaN"),
        (torch.ones(2, 2), {"temperature": 0.0}, "positive"), (torch.ones(2, 2), {"iterations": 0}, "positive"),
        (torch.ones(2, 2), {"temperature": math.inf}, "positive"),
    ],
)  # fmt: skip
def test_costs_and_options_that_make_no_plan_are_refused(cost, options, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(cost, **options)
