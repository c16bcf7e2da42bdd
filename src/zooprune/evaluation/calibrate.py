"""Find the smallest budget that keeps a model's answers, with a guarantee.

Quality is a probability. If the right answers are known, it is the probability that a question which the unpruned model
answers right stays right; questions that become right by pruning do not count. Otherwise it is the probability that the
pruned reply equals the unpruned one. A setting is certified if the Clopper-Pearson lower bound of its quality reaches
the target.

Several settings are tested on the same questions. The probability that any of them is certified wrongly stays below the
allowed error for two reasons. A method's budgets are tested from the largest down until the first one fails
(fixed-sequence testing). Several methods share the allowed error (Bonferroni). Questions are asked in rounds that
double. After each round, settings are dropped that could not be certified even if all remaining questions went well.
They would fail at the end anyway, so looking early does not change the outcome.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

try:
    from scipy.special import betaincinv
except ImportError:
    raise ImportError("scipy is needed to calibrate; run: pip install 'zooprune[calibrate]'") from None

from zooprune.data.examples import Example, fingerprint
from zooprune.encoding import remembering_encodings
from zooprune.evaluation.intervals import clusters
from zooprune.evaluation.metrics import normalise
from zooprune.evaluation.runner import Setting, Subject
from zooprune.plan import Plan
from zooprune.policy import Policy
from zooprune.sensitivity.weight_cache import held

#: Candidate shares of the visual tokens, from easy to hard.
SHARES = (0.75, 0.5, 0.33, 0.25, 0.17, 0.11, 0.08, 0.055, 0.028)
FIRST_ROUND = 16

Measure = Literal["agreement", "right answers kept"]
#: (settings, first, last) -> successes and trials of each setting on the questions from `first` up to `last`.
Ask = Callable[[Sequence[Setting], int, int], Sequence[tuple[int, int]]]


@dataclass
class Candidate:
    """A setting on trial.

    Parameters
    ----------
    setting : Setting
    successes, trials : int
        On the questions asked so far.
    worth : float
        How many independent questions one question counts for: 1 or less.
    dropped : bool
        Whether it, or a larger budget of its method, cannot be certified any more.
    """

    setting: Setting
    successes: int = 0
    trials: int = 0
    worth: float = 1.0
    dropped: bool = False

    def lower_bound(self, confidence: float, ahead: int = 0) -> float:
        """Return the lower bound of its quality, or the bound after `ahead` more successes."""
        return lower_bound(self.worth * (self.successes + ahead), self.worth * (self.trials + ahead), confidence)


def lower_bound(successes: float, trials: float, confidence: float) -> float:
    """Return the one-sided Clopper-Pearson lower bound of a probability; counts may be fractions."""
    return 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, 1 - confidence))


def questions_needed(quality: float, confidence: float) -> int:
    """Return how many questions are needed to certify a quality if all of them go well."""
    return math.ceil(math.log(1 - confidence) / math.log(quality))


def worth(examples: Sequence[Example]) -> float:
    """Return how many independent questions each of these counts for, if a scene counts once.

    This is the inverse of the design effect under the worst case, in which all questions about a scene succeed or fail
    together. They may depend on each other less, so the certificate errs on the safe side.
    """
    sizes = np.bincount(clusters(example.scenes for example in examples))
    return float(sizes.sum() / (sizes**2).sum())


def search(
    methods: Sequence[Sequence[Setting]],
    ask: Ask,
    questions: int,
    *,
    quality: float,
    confidence: float,
    worth: float = 1.0,
) -> list[Candidate]:
    """Try all settings, on as few questions as are needed to decide which can be certified.

    Parameters
    ----------
    methods : sequence of sequences of Setting
        The settings of each method, from the largest budget to the smallest.
    ask : callable
        Counts successes and trials.
    questions : int
        The number of questions.
    quality, confidence : float
        Both in (0, 1).
    worth : float
        How many independent questions one question counts for; see the function `worth`.

    Returns
    -------
    list of Candidate
        All candidates. Those that are not dropped are certified, jointly and with `confidence`.
    """
    each = 1 - (1 - confidence) / len(methods)
    chains = [[Candidate(setting, worth=worth) for setting in settings] for settings in methods]
    everyone = [candidate for chain in chains for candidate in chain]
    first, last = 0, min(FIRST_ROUND, questions)
    while first < last:
        open_ = [candidate for candidate in everyone if not candidate.dropped]
        counts = ask([candidate.setting for candidate in open_], first, last)
        for candidate, (successes, trials) in zip(open_, counts, strict=True):
            candidate.successes += successes
            candidate.trials += trials
        for chain in chains:
            failed = False
            for candidate in chain:
                failed = failed or candidate.dropped or candidate.lower_bound(each, questions - last) < quality
                candidate.dropped = failed
        if all(candidate.dropped for candidate in everyone):
            break
        first, last = last, min(2 * last, questions)
    return everyone


def check_request(
    methods: Sequence[str], keeps: Sequence[int | float], *, quality: float, confidence: float = 0.95
) -> None:
    """Check what can be checked without a model; parameters as of `calibrate`.

    Raises
    ------
    ValueError
        If an argument is not valid.
    """
    for name, value in (("quality", quality), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value} is not between 0 and 1; give a share such as 0.99")
    if not methods or not keeps or len({type(keep) for keep in keeps}) != 1:
        raise ValueError("give at least one method and budgets that are all numbers of tokens or all shares")
    for method in methods:
        Setting(method, keeps[0])


def calibrate(
    subject: Subject,
    examples: Sequence[Example],
    methods: Sequence[str],
    keeps: Sequence[int | float] = SHARES,
    policy: Policy = Policy(),  # noqa: B008, it is frozen
    *,
    quality: float = 0.99,
    confidence: float = 0.95,
    batch: int = 8,
    progress: Callable[[int], None] = lambda questions: None,
) -> tuple[Plan, list[Candidate]]:
    """Find the method and the smallest budget that keep the answers of the unpruned model.

    Parameters
    ----------
    subject : Subject
    examples : sequence of Example
        With more questions, qualities closer to the target can be certified. If all questions have answers, quality is
        measured by them, otherwise by agreement with the unpruned model.
    methods : sequence of str
    keeps : sequence of int, or of float
        Candidate budgets.
    policy : Policy
        The policy of all methods, which is written into the plan.
    quality : float
        The share of answers to keep, in (0, 1).
    confidence : float
        The confidence that all certified settings keep it, in (0, 1).
    batch : int
        Questions per batch.
    progress : callable
        Called with the number of questions that were just asked.

    Returns
    -------
    plan : Plan
        The certified setting with the smallest budget; of several, the one with the most successes.
    candidates : list of Candidate
        All candidates.

    Raises
    ------
    ValueError
        If the questions are too few, the arguments are not valid, or nothing can be certified.
    """
    check_request(methods, keeps, quality=quality, confidence=confidence)
    methods = list(dict.fromkeys(methods))
    needed = questions_needed(quality, 1 - (1 - confidence) / len(methods))
    each = worth(examples)
    # Rounded, because 300 questions that count for 1 / 3 each must be 100.
    enough = round(each * len(examples), 6)
    if enough < needed:
        there = f"there are {len(examples)}"
        if each < 1:
            there += f" that share scenes and count for {enough:.0f}"
        raise ValueError(_too_few(quality, confidence, len(methods), needed, there))
    chains = [[Setting(method, keep, policy=policy) for keep in sorted(set(keeps), reverse=True)] for method in methods]
    measure: Measure = "right answers kept" if all(example.answers for example in examples) else "agreement"

    def count(settings: Sequence[Setting], first: int, last: int) -> list[tuple[int, int]]:
        counts = [(0, 0)] * len(settings)
        for start in range(first, last, batch):
            asked = examples[start : min(start + batch, last)]
            counts = [
                (old[0] + new[0], old[1] + new[1])
                for old, new in zip(counts, _compared(subject, asked, settings, measure), strict=True)
            ]
            progress(len(asked))
        return counts

    with held(subject.model):
        candidates = search(chains, count, len(examples), quality=quality, confidence=confidence, worth=each)
    certified = [candidate for candidate in candidates if not candidate.dropped]
    if not certified:
        best = candidates[0]
        if best.trials == best.successes:
            raise ValueError(
                _too_few(quality, confidence, len(methods), needed, "the unpruned model answers too few of them right")
            )
        raise ValueError(
            f"no setting can be certified to keep {quality:.1%} of the answers: {best.setting.method} with "
            f"keep={best.setting.keep} kept {best.successes} of {best.trials}; lower --keep-quality or add larger "
            "budgets with --keep"
        )
    best = min(certified, key=lambda candidate: (candidate.setting.keep, -candidate.successes))
    assert best.setting.keep is not None
    plan = Plan(
        subject.name,
        best.setting.method,
        best.setting.keep,
        policy=policy,
        certified={
            "quality": quality,
            "confidence": confidence,
            "measure": measure,
            "successes": best.successes,
            "trials": best.trials,
            "worth": each,
            "lower_bound": best.lower_bound(1 - (1 - confidence) / len(methods)),
            "methods_tried": methods,
            "questions": fingerprint(examples),
        },
    )
    return plan, candidates


def _compared(
    subject: Subject, examples: Sequence[Example], settings: Sequence[Setting], measure: Measure
) -> list[tuple[int, int]]:
    inputs = subject.prepare(examples)
    counts = []
    with remembering_encodings():
        full = subject.reply(examples, inputs, Setting())
        for setting in settings:
            pairs = list(zip(full, subject.reply(examples, inputs, setting), strict=True))
            if measure == "agreement":
                good = [normalise(before["reply"]) == normalise(after["reply"]) for before, after in pairs]
            else:
                good = [after["right"] for before, after in pairs if before["right"]]
            counts.append((sum(good), len(good)))
    return counts


def _too_few(quality: float, confidence: float, methods: int, needed: int, there: str) -> str:
    among = f" among {methods} methods" if methods > 1 else ""
    return (
        f"to certify {quality:g} with {confidence:.0%} confidence{among} takes at least {needed} questions, if all of "
        f"them go well, and {there}; give more questions or lower --keep-quality"
    )
