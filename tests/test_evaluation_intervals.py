"""Intervals hold what they should as often as they say, however many questions share a scene."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from scipy.stats import binomtest, t

from zooprune.evaluation.intervals import _student, clusters, difference, share
from zooprune.evaluation.metrics import Answers, compare, kept_share_interval

RUNS = 1000


def alone(count: int) -> np.ndarray:
    """Return a scene of its own for every question."""
    return np.arange(count)


def paired(gap: np.ndarray, cluster: np.ndarray) -> tuple[float, float]:
    """Return the interval of the mean of differences."""
    return difference(gap / len(gap), (gap - gap.mean()) / len(gap), np.full(len(gap), 1 / len(gap)), cluster)


def test_questions_that_share_a_scene_share_a_cluster():
    scenes = [("1",), ("2",), ("2", "3"), (), ("3",), ("1",), (), ("4", "5"), ("5",)]
    assert clusters(scenes).tolist() == [0, 1, 1, 2, 1, 0, 3, 4, 4]


@pytest.mark.parametrize("right, total", [(0, 30), (17, 40), (299, 300), (90, 90), (450, 500)])
def test_independent_questions_get_wilsons_interval(right, total):
    values = np.arange(total) < right
    low, high = share(values.astype(float), alone(total))
    expected = binomtest(right, total).proportion_ci(0.95, method="wilson")
    # Student's quantile in place of the normal one widens it, most of all with few questions.
    assert low == pytest.approx(expected.low, abs=0.01) and high == pytest.approx(expected.high, abs=0.01)
    assert low <= expected.low + 1e-9 and high >= expected.high - 1e-9


@pytest.mark.parametrize("free", [5, 10, 30, 300])
def test_the_quantile_is_students(free):
    assert _student(free) == pytest.approx(t.ppf(0.975, free), abs=0.01)


@pytest.mark.parametrize("count", [9, 30, 90, 3000])
def test_the_interval_has_a_width_where_nothing_differs(count):
    low, high = paired(np.zeros(count), alone(count))
    assert -low == pytest.approx(high) and high == pytest.approx(1.96**2 / (count + 1.96**2), rel=1e-3)
    # And where every question differs.
    assert share(np.ones(count), alone(count))[0] == pytest.approx(count / (count + 1.96**2), rel=1e-3)


def test_two_of_eighteen_lost_is_no_certain_figure():
    gap = np.zeros(18)
    gap[:2] = -1
    low, high = paired(gap, alone(18))
    assert low < -0.25 and high > -0.02


def test_repeated_questions_make_nothing_surer():
    gap = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 60, p=[0.2, 0.75, 0.05])
    once = paired(gap, alone(60))
    np.testing.assert_allclose(paired(np.repeat(gap, 5), np.repeat(alone(60), 5)), once, atol=1e-9)


def test_a_large_sample_gets_the_normal_interval():
    gap = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 20000, p=[0.15, 0.8, 0.05])
    half = 1.96 * gap.std() / math.sqrt(len(gap))
    np.testing.assert_allclose(paired(gap, alone(20000)), (gap.mean() - half, gap.mean() + half), atol=3e-4)


def test_sixty_thousand_questions_take_little_memory():
    gap = np.random.default_rng(2).choice([-1.0, 0.0, 1.0], 60_000, p=[0.1, 0.85, 0.05])
    tracemalloc.start()
    paired(gap, np.arange(60_000) // 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def beta(rng: np.random.Generator, mean: float, alike: float, count: int) -> np.ndarray:
    """Draw a chance for every scene, so that two questions of a scene correlate by `alike`."""
    whole = (1 - alike) / alike
    return rng.beta(mean * whole, (1 - mean) * whole, count)


def made_up(rng, questions: int, keeps: float, tasks: int) -> tuple[Answers, float]:
    """Return what a model and a method that keeps a known share of its score answer, and the true difference.

    Scenes have one to a dozen questions, five on average; what goes wrong in one goes wrong in its others.
    """
    full, gained = 0.95, 0.2
    lost = 1 - keeps + (1 - full) * gained / full
    scene = np.repeat(np.arange(questions), 1 + rng.poisson(4, questions))[:questions]
    before = rng.random(questions) < beta(rng, full, 0.2, questions)[scene]
    stays = rng.random(questions) >= beta(rng, lost, 0.2, questions)[scene]
    right = np.stack([before, np.where(before, stays, rng.random(questions) < gained)]).astype(float)
    names = tuple(map(str, range(questions)))
    task = tuple(map(str, rng.permutation(questions) % tasks))
    arms = (("none", None), ("zoo", 64))
    return Answers(names, task, arms, right, right, right * 0, np.zeros(questions), scene, ([], [])), full * (keeps - 1)


@pytest.mark.parametrize("keeps", [0.99, 0.95, 0.8])
@pytest.mark.parametrize("questions, tasks", [(30, 1), (90, 1), (225, 9), (900, 9)])
def test_ninety_five_percent_hold_at_least_ninety_two(questions, tasks, keeps):
    rng = np.random.default_rng(questions)
    held = np.zeros(2)
    for _ in range(RUNS):
        answers, true = made_up(rng, questions, keeps, tasks)
        low, high = compare(answers, ("zoo", 64), ("none", None))["interval"]
        least, most = kept_share_interval(answers, 1)
        held += low <= true <= high, least <= keeps <= most
    assert (held / RUNS >= 0.92).all(), held / RUNS
