"""Intervals of 95 % for shares and paired differences, where several questions are about the same scene.

An interval from resampled questions is too narrow twice over. Questions about one scene fall together, so there is less
to learn from them than their number says; and where every reply is the same, every resample is the same too, and the
interval has no width. Here the variance is taken over scenes. It says how many independent questions would be as sure
(the effective sample size of Rao and Scott), and that number goes into Wilson's score interval, which has a width even
where nothing differs. The two ends of a difference are put together from those of its gains and its losses.

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
    """Return which cluster each question belongs to, numbered from 0, (Q,).

    Questions that share a scene are in one cluster, also by way of a third one: if a question is about the scenes 1 and
    2, those about 1 and those about 2 are not independent of each other. A question without scenes is one by itself.
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
        What `clusters` returned for these questions.

    Returns
    -------
    tuple of float or None
        None with fewer than two clusters, which say nothing about others.
    """
    mean, weights = float(values.mean()), np.full(len(values), 1 / len(values))
    found = _effective(mean * (1 - mean), weights * (values - mean), weights, cluster)
    return None if found is None else _wilson(mean, *found)


def difference(changes: Floats, influences: Floats, weights: Floats, cluster: NDArray[np.int64]) -> Interval | None:
    """Return the interval of a sum of gains and losses.

    Parameters
    ----------
    changes : array, (Q,)
        What each question adds to the difference; positive ones are gains.
    influences : array, (Q,)
        How far each question moves the difference from its mean; they sum to zero.
    weights : array, (Q,)
        By how much a question can change the difference; they sum to one.
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
    # A question that is gained is not lost, so the two shares of a multinomial fall as the other rises.
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
    """Return how many independent questions would be as sure, never more than there are, and the quantile to use."""
    count = int(cluster.max()) + 1 if len(cluster) else 0
    if count < 2:
        return None
    most = 1 / float((weights**2).sum())
    # As sure as if the questions of a scene were one question, asked several times.
    least = 1 / float((np.bincount(cluster, weights) ** 2).sum())
    found = count / (count - 1) * float((np.bincount(cluster, influences) ** 2).sum())
    if variance <= 1e-12 or found <= 1e-12 * variance:
        # Nothing differs, so nothing says how alike the questions of a scene are: as alike as can be.
        return least, _NORMAL
    return min(most, max(least, variance / found)), _student(count - 1)


def _wilson(share: float, size: float, quantile: float) -> Interval:
    square = quantile**2 / size
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def _student(free: int) -> float:
    """Return Student's quantile, because a variance over few clusters is itself not known well.

    By Cornish and Fisher's expansion, to within 0.01 from five degrees of freedom.
    """
    z = _NORMAL
    return (
        z
        + (z**3 + z) / (4 * free)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    )
