"""Numbers from rows: scores, what pruning keeps of them, how sure that is, and what it costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zooprune.pruners import UNPRUNED

Floats = NDArray[np.float64]
Row = dict[str, Any]
#: A method with its budget.
Arm = tuple[str, int | float | None]

FULL: Arm = (UNPRUNED, None)
#: The task that POPE asks: scored by F1, for which "yes" is positive.
EXISTENCE = "existence"
RESAMPLES = 2000


def normalise(reply: str) -> str:
    """Return a reply without case, surrounding blanks and final full stop."""
    return reply.strip().removesuffix(".").strip().lower()


def is_right(reply: str, answers: Iterable[str]) -> bool:
    """Return whether a reply is one of the answers, both normalised."""
    return normalise(reply) in {normalise(answer) for answer in answers}


@dataclass(frozen=True)
class Answers:
    """What one model replied, arranged by arm and question; draws of the same arm are averaged.

    Parameters
    ----------
    ids, tasks : tuple of str, (Q,)
        The questions that every arm has answered.
    arms : tuple of (method, keep), (A,)
        The unpruned model comes first.
    right : array, (A, Q)
        Share of draws with a right reply; NaN where the answer is not known.
    same : array, (A, Q)
        Share of draws with the unpruned model's reply.
    yes : array, (A, Q)
        Share of draws with the reply "yes".
    truth : array, (Q,)
        Whether "yes" is right; NaN where the answer is not known.
    rows : dict
        The rows of each arm for these questions.
    """

    ids: tuple[str, ...]
    tasks: tuple[str, ...]
    arms: tuple[Arm, ...]
    right: Floats
    same: Floats
    yes: Floats
    truth: Floats
    rows: dict[Arm, list[Row]]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The tasks, in the order in which they first occur."""
        return tuple(dict.fromkeys(self.tasks))

    def of(self, task: str) -> NDArray[np.bool_]:
        """Return which questions belong to a task, (Q,)."""
        return np.array([one == task for one in self.tasks])

    def number(self, arm: Arm) -> int:
        """Return the place of an arm."""
        if arm not in self.arms:
            raise ValueError(f"no rows of {arm[0]} with keep={arm[1]}; evaluate it first")
        return self.arms.index(arm)


def arrange(rows: Iterable[Row]) -> Answers:
    """Arrange the rows of one model.

    Raises
    ------
    ValueError
        If the unpruned model's rows are missing, or no question was answered by every arm.
    """
    by_arm: dict[Arm, list[Row]] = {FULL: []}
    for row in rows:
        by_arm.setdefault((row["method"], row["keep"]), []).append(row)
    full = {row["id"]: row for row in by_arm[FULL]}
    if not full:
        raise ValueError("the unpruned model has no rows; run the evaluation to its end first")
    draws = {arm: len({row["seed"] for row in mine}) for arm, mine in by_arm.items()}
    counts = {arm: Counter(row["id"] for row in mine) for arm, mine in by_arm.items()}
    ids = [one for one in full if all(counts[arm][one] == draws[arm] for arm in by_arm)]
    if not ids:
        raise ValueError("no question was answered by every method; run the evaluation to its end first")
    place = {one: number for number, one in enumerate(ids)}
    shape = len(by_arm), len(ids)
    right, same, yes = (np.zeros(shape) for _ in range(3))
    for number, (arm, mine) in enumerate(by_arm.items()):
        for row in mine:
            if row["id"] in place:
                where, share = (number, place[row["id"]]), 1 / draws[arm]
                reply = normalise(row["reply"])
                right[where] += math.nan if row["right"] is None else row["right"] * share
                same[where] += (reply == normalise(full[row["id"]]["reply"])) * share
                yes[where] += (reply == "yes") * share
    answers = [full[one]["answers"] for one in ids]
    truth = [float(is_right("yes", mine)) if mine else math.nan for mine in answers]
    tasks = tuple(full[one]["task"] for one in ids)
    # Thirds that are added up must still be a whole.
    right, same, yes = (values.round(9) for values in (right, same, yes))
    complete = {arm: [row for row in mine if row["id"] in place] for arm, mine in by_arm.items()}
    return Answers(tuple(ids), tasks, tuple(by_arm), right, same, yes, np.array(truth), complete)


def resample(tasks: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return how often each question occurs in each bootstrap resample, (resamples, Q).

    Every task keeps its number of questions, and all arms share the resamples, so that comparisons are paired.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(tasks)))
    for task in dict.fromkeys(tasks):
        mine = np.flatnonzero([one == task for one in tasks])
        weights[:, mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=resamples)
    return weights


def task_scores(answers: Answers, weights: Floats) -> Floats:
    """Return the score of every task and arm: F1 of "existence", accuracy of others.

    Parameters
    ----------
    answers : Answers
    weights : array, (R, Q)
        How often each question counts.

    Returns
    -------
    array, (R, A, tasks)
        NaN where no answer is known, or, for F1, where no "yes" was right or said.
    """
    scores = np.full((len(weights), len(answers.arms), len(answers.kinds)), np.nan)
    for number, task in enumerate(answers.kinds):
        mine = answers.of(task) & ~np.isnan(answers.truth)
        if not mine.any():
            continue
        share = weights[:, mine]
        if task == EXISTENCE:
            yes, truth = answers.yes[:, mine], answers.truth[mine]
            hits = share @ (yes * truth).T
            # 2 TP + FP + FN is all that was said to be there and all that is there.
            top, bottom = 2 * hits, share @ yes.T + (share @ truth)[:, None]
        else:
            top, bottom = share @ answers.right[:, mine].T, share.sum(1)[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            scores[:, :, number] = top / bottom
    return scores


def kept_share(scores: Floats) -> Floats:
    """Return the mean over tasks of an arm's score over the unpruned model's, (R, A).

    Parameters
    ----------
    scores : array, (R, A, tasks)
        The unpruned model is arm 0. Tasks in which it scores nothing are left out.
    """
    full = scores[:, :1]
    counts = np.isfinite(full) & (full > 0) & np.isfinite(scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts, scores / full, 0).sum(-1) / counts.sum(-1)


def interval(draws: Floats) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of bootstrap draws; None without a finite one."""
    finite = draws[np.isfinite(draws)]
    return None if not len(finite) else (float(np.percentile(finite, 2.5)), float(np.percentile(finite, 97.5)))


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p of as uneven a split of discordant pairs, or worse: McNemar's exact test."""
    total = wins + losses
    tail = sum(math.comb(total, number) for number in range(min(wins, losses) + 1))
    return float(min(1.0, 2 * tail / 2**total))


def compare(answers: Answers, first: Arm, second: Arm, weights: Floats | None = None) -> dict[str, Any]:
    """Compare two arms on the same questions.

    Parameters
    ----------
    answers : Answers
    first, second : (method, keep)
    weights : array, (R, Q), optional
        What `resample` returned for these questions, to save doing it for every pair.

    Returns
    -------
    dict
        `difference` in accuracy over all questions whose answer is known, first minus second, with its `interval`
        (bootstrap, 95 %); `wins` and `losses` of the first, and `p` of the exact sign test on these discordant
        questions (McNemar's; with several draws a question goes to the arm that has it right more often).

    Raises
    ------
    ValueError
        If an arm has no rows, or no answer is known.
    """
    gap = answers.right[answers.number(first)] - answers.right[answers.number(second)]
    known = ~np.isnan(gap)
    if not known.any():
        raise ValueError("no answer is known, so no method is right more often; give answers with the questions")
    weights = (resample(answers.tasks) if weights is None else weights)[:, known]
    gap = gap[known]
    draws = weights @ gap / weights.sum(1)
    wins, losses = int((gap > 0).sum()), int((gap < 0).sum())
    return {
        "first": list(first),
        "second": list(second),
        "difference": float(gap.mean()),
        "interval": interval(draws),
        "wins": wins,
        "losses": losses,
        "p": sign_test(wins, losses),
    }


def summarise(answers: Answers, weights: Floats | None = None) -> list[dict[str, Any]]:
    """Return all figures of every arm, the unpruned model first.

    Parameters
    ----------
    answers : Answers
    weights : array, (R, Q), optional
        What `resample` returned for these questions, to save doing it again.

    Returns
    -------
    list of dict
        `method`, `keep`, `draws`, `questions`;
        `tasks` with `questions`, `score`, `accuracy` and, for "existence", `f1` and `yes_ratio`;
        `accuracy` over all questions;
        `kept_share` of the unpruned score, mean over tasks, and `kept_share_interval`;
        `agreement` with the unpruned model's replies, and `agreement_interval`;
        `evidence_recall`, mean over questions that have regions;
        means of `visual_tokens`, `kept_tokens`, `prompt_tokens`, `flops` and `kv_bytes`;
        `seconds`, medians over the timed questions of every stage, `first_token` (all but decode) and `total`.
        None where there is nothing to tell it from.
    """
    plain = np.ones((1, len(answers.ids)))
    weights = resample(answers.tasks) if weights is None else weights
    scores, share = task_scores(answers, plain)[0], kept_share(task_scores(answers, plain))[0]
    shares = kept_share(task_scores(answers, weights))
    agreements = weights @ answers.same.T / len(answers.ids)
    table = []
    for number, (method, keep) in enumerate(answers.arms):
        rows = answers.rows[(method, keep)]
        table.append(
            {
                "method": method,
                "keep": keep,
                "draws": len({row["seed"] for row in rows}),
                "questions": len(answers.ids),
                "tasks": {
                    task: _task(answers, number, task, scores[number, place])
                    for place, task in enumerate(answers.kinds)
                },
                "accuracy": _mean(answers.right[number]),
                "kept_share": _finite(share[number]),
                "kept_share_interval": interval(shares[:, number]),
                "agreement": float(answers.same[number].mean()),
                "agreement_interval": interval(agreements[:, number]),
                "evidence_recall": _mean(
                    [r["evidence"]["kept"] / r["evidence"]["regions"] for r in rows if r["evidence"] is not None]
                ),
                **{
                    name: _mean([row[name] for row in rows])
                    for name in ("visual_tokens", "kept_tokens", "prompt_tokens", "flops", "kv_bytes")
                },
                "seconds": _seconds(rows),
            }
        )
    return table


def _task(answers: Answers, number: int, task: str, score: float) -> dict[str, Any]:
    mine = answers.of(task)
    figures = {
        "questions": int(mine.sum()),
        "score": _finite(score),
        "accuracy": _mean(answers.right[number, mine]),
    }
    if task == EXISTENCE:
        figures |= {"f1": _finite(score), "yes_ratio": float(answers.yes[number, mine].mean())}
    return figures


def _seconds(rows: Sequence[Row]) -> dict[str, float] | None:
    timed = [row["seconds"] for row in rows if row["seconds"]]
    if not timed:
        return None
    whole = [one | {"first_token": one["total"] - one.get("decode", 0.0)} for one in timed]
    stages = dict.fromkeys(name for one in whole for name in one)
    return {stage: float(np.median([one.get(stage, 0.0) for one in whole])) for stage in stages}


def _mean(values: Sequence[float] | Floats) -> float | None:
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
