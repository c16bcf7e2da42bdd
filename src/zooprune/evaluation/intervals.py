"""Intervals of 95 % for shares and paired differences, where several questions are about the same scene.

An interval from resampled questions is too narrow, for two reasons. Questions about the same scene depend on each
other, so they are worth less than their number. If all replies are equal, all resamples are equal too, and the interval
has no width. Here the variance is taken over scenes. It gives the number of independent questions that would be equally
certain (the effective sample size of Rao and Scott). That number is used in Wilson's score interval, which has a width
even if nothing differs. The interval of a difference is combined from the intervals of its gains and its losses.

Sources: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), 209-212.
J. N. K. Rao and A. J. Scott, "A simple method for the analysis of clustered binary data", Biometrics 48 (1992), 577.
R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
Statistics in Medicine 17 (1998), 2635-2650. G. Y. Zou and A. Donner, "Construction of confidence limits about effect
measures: a general approach", Statistics in Medicine 27 (2008), 1693-1702.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

_NORMAL = NormalDist().inv_cdf(0.975)


def clusters(scenes: Iterable[Sequence[str]]) -> NDArray[np.int64]:
    """Return the cluster of each question, numbered from 0, (Q,).

    Questions that share a scene are in one cluster, also indirectly: a question about the scenes 1 and 2 joins all
    questions about either of them. A question without scenes is a cluster of its own.
    """
    parent: dict[str, str] = {}

    def root(scene: str) -> str:
        parent.setdefault(scene, scene)
        while parent[scene] != scene:
            parent[scene] = parent[parent[scene]]
            scene = parent[scene]
        return scene

    firsts: list[str | None] = []
    for shown in scenes:
        for scene in shown:
            parent[root(scene)] = root(shown[0])
        firsts.append(shown[0] if shown else None)
    numbers: dict[object, int] = {}
    # An object of its own is equal to nothing else.
    keys = [object() if first is None else root(first) for first in firsts]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def share(values: Floats, cluster: NDArray[np.int64]) -> Interval | None:
    """Return the interval of a mean of values between 0 and 1: Wilson's, with the effective number of questions.

    Parameters
    ----------
    values : array, (Q,)
    cluster : array of int, (Q,)
        From `clusters`.

    Returns
    -------
    tuple of float or None
        None with fewer than two clusters, which say nothing about other clusters.
    """
    mean, weights = float(values.mean()), np.full(len(values), 1 / len(values))
    found = _effective(mean * (1 - mean), weights * (values - mean), weights, cluster)
    return None if found is None else _wilson(mean, *found)


def difference(changes: Floats, influences: Floats, weights: Floats, cluster: NDArray[np.int64]) -> Interval | None:
    """Return the interval of a sum of gains and losses.

    Parameters
    ----------
    changes : array, (Q,)
        The change of the difference by each question; positive changes are gains.
    influences : array, (Q,)
        The deviation of each question's change from the mean; they sum to zero.
    weights : array, (Q,)
        The largest possible change by each question; they sum to one.
    cluster : array of int, (Q,)

    Returns
    -------
    tuple of float or None
        None with fewer than two clusters.
    """
    gain, loss = (min(1.0, float(np.maximum(sign * changes, 0).sum())) for sign in (1, -1))
    gap = gain - loss
    found = _effective(gain + loss - gap**2, influences, weights, cluster)
    if found is None:
        return None
    (gain_low, gain_high), (loss_low, loss_high) = (_wilson(part, *found) for part in (gain, loss))
    # A question cannot be both gained and lost, so the two shares are negatively correlated, as in a multinomial.
    spread = (1 - gain) * (1 - loss)
    together = -math.sqrt(gain * loss / spread) if spread > 0 else 0.0
    return (
        gap - _joined(gain - gain_low, loss_high - loss, together),
        gap + _joined(gain_high - gain, loss - loss_low, together),
    )


def _joined(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one**2 + other**2 - 2 * correlation * one * other))


def _effective(
    variance: float, influences: Floats, weights: Floats, cluster: NDArray[np.int64]
) -> tuple[float, float] | None:
    """Return the effective number of questions, at most their actual number, and the quantile to use."""
    count = int(cluster.max()) + 1 if len(cluster) else 0
    if count < 2:
        return None
    most = 1 / float((weights**2).sum())
    # The least is reached if all questions about a scene succeed or fail together.
    least = 1 / float((np.bincount(cluster, weights) ** 2).sum())
    found = count / (count - 1) * float((np.bincount(cluster, influences) ** 2).sum())
    if variance <= 1e-12 or found <= 1e-12 * variance:
        # Nothing differs, so the dependence within a scene is unknown: the worst case is assumed.
        return least, _NORMAL
    return min(most, max(least, variance / found)), _student(count - 1)


def _wilson(share: float, size: float, quantile: float) -> Interval:
    square = quantile**2 / size
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def _student(free: int) -> float:
    """Return Student's quantile, which accounts for the uncertain variance over few clusters.

    Computed with the expansion of Cornish and Fisher, to within 0.01 from five degrees of freedom.
    """
    z = _NORMAL
    return (
        z
        + (z**3 + z) / (4 * free)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    )
