"""Numbers from rows: scores, the share of them that pruning keeps, intervals, and costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zooprune.evaluation.intervals import Interval, clusters, difference, share
from zooprune.pruners import UNPRUNED

Floats = NDArray[np.float64]
Row = dict[str, Any]
#: A method with its budget. Compare budgets with `budget`, because 1 == 1.0.
Arm = tuple[str, int | float | None]

FULL: Arm = (UNPRUNED, None)
#: The task of POPE: scored by F1, with "yes" as the positive answer.
EXISTENCE = "existence"
#: With fewer questions a task, a mean over tasks gets no interval: each task's own score is too uncertain.
LEAST_PER_TASK = 20


def budget(keep: int | float | None) -> str:
    """Return a budget as text, in which 1 (one token) and 1.0 (all tokens) differ."""
    return "all" if keep is None else str(keep)


def normalise(reply: str) -> str:
    """Return a reply without case, surrounding blanks and final full stop."""
    return reply.strip().removesuffix(".").strip().lower()


def is_right(reply: str, answers: Iterable[str]) -> bool:
    """Return whether a reply is one of the answers, both normalised."""
    return normalise(reply) in {normalise(answer) for answer in answers}


@dataclass(frozen=True)
class Answers:
    """The replies of one model, by arm and question; draws of the same arm are averaged.

    Parameters
    ----------
    ids, tasks : tuple of str, (Q,)
        The questions that every arm has answered.
    arms : tuple of (method, keep), (A,)
        The unpruned model comes first.
    right : array, (A, Q)
        Share of draws with a right reply; NaN if the answer is not known.
    same : array, (A, Q)
        Share of draws with the unpruned model's reply.
    yes : array, (A, Q)
        Share of draws with the reply "yes".
    truth : array, (Q,)
        Whether "yes" is right; NaN if the answer is not known.
    cluster : array of int, (Q,)
        Which questions are about the same scenes; see `zooprune.evaluation.intervals.clusters`.
    rows : tuple of lists, (A,)
        The rows of each arm for these questions.
    """

    ids: tuple[str, ...]
    tasks: tuple[str, ...]
    arms: tuple[Arm, ...]
    right: Floats
    same: Floats
    yes: Floats
    truth: Floats
    cluster: NDArray[np.int64]
    rows: tuple[list[Row], ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The tasks, in the order in which they first occur."""
        return tuple(dict.fromkeys(self.tasks))

    def of(self, task: str) -> NDArray[np.bool_]:
        """Return which questions belong to a task, (Q,)."""
        return np.array([kind == task for kind in self.tasks])

    def number(self, arm: Arm) -> int:
        """Return the place of an arm."""
        keys = [(method, budget(keep)) for method, keep in self.arms]
        key = arm[0], budget(arm[1])
        if key not in keys:
            raise ValueError(f"no rows of {arm[0]} with keep={arm[1]}; evaluate it first")
        return keys.index(key)


def arrange(rows: Iterable[Row]) -> Answers:
    """Arrange the rows of one model.

    Raises
    ------
    ValueError
        If the unpruned model's rows are missing, or no question was answered by every arm.
    """
    unpruned = FULL[0], budget(FULL[1])
    by_arm: dict[tuple[str, str], list[Row]] = {unpruned: []}
    for row in rows:
        by_arm.setdefault((row["method"], budget(row["keep"])), []).append(row)
    full = {row["id"]: row for row in by_arm[unpruned]}
    if not full:
        raise ValueError("the unpruned model has no rows; run the evaluation to its end first")
    draws = {arm: len({row["seed"] for row in replies}) for arm, replies in by_arm.items()}
    counts = {arm: Counter(row["id"] for row in replies) for arm, replies in by_arm.items()}
    ids = [question for question in full if all(counts[arm][question] == draws[arm] for arm in by_arm)]
    if not ids:
        raise ValueError("no question was answered by every method; run the evaluation to its end first")
    place = {question: number for number, question in enumerate(ids)}
    shape = len(by_arm), len(ids)
    right, same, yes = (np.zeros(shape) for _ in range(3))
    for number, (arm, replies) in enumerate(by_arm.items()):
        for row in replies:
            if row["id"] in place:
                where, share = (number, place[row["id"]]), 1 / draws[arm]
                reply = normalise(row["reply"])
                right[where] += math.nan if row["right"] is None else row["right"] * share
                same[where] += (reply == normalise(full[row["id"]]["reply"])) * share
                yes[where] += (reply == "yes") * share
    answers = [full[question]["answers"] for question in ids]
    truth = [float(is_right("yes", replies)) if replies else math.nan for replies in answers]
    tasks = tuple(full[question]["task"] for question in ids)
    # Three draws of 1/3 must sum to exactly 1.
    right, same, yes = (values.round(9) for values in (right, same, yes))
    complete = tuple([row for row in replies if row["id"] in place] for replies in by_arm.values())
    arms = tuple((replies[0]["method"], replies[0]["keep"]) for replies in by_arm.values())
    cluster = clusters(full[question].get("scenes", ()) for question in ids)
    return Answers(tuple(ids), tasks, arms, right, same, yes, np.array(truth), cluster, complete)


def task_scores(answers: Answers) -> Floats:
    """Return the score of every arm and task, (A, tasks): F1 of "existence", accuracy of others.

    NaN if no answer is known or, for F1, if no "yes" was right or replied.
    """
    scores = np.full((len(answers.arms), len(answers.kinds)), np.nan)
    for number, task in enumerate(answers.kinds):
        asked = answers.of(task) & ~np.isnan(answers.truth)
        if not asked.any():
            continue
        if task == EXISTENCE:
            # 2 TP + FP + FN is the number of "yes" replies plus the number of "yes" answers.
            top, bottom = 2 * answers.yes[:, asked] @ answers.truth[asked], _existence(answers, asked)
        else:
            top, bottom = answers.right[:, asked].sum(1), np.full(len(answers.arms), asked.sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            scores[:, number] = top / bottom
    return scores


def _existence(answers: Answers, asked: NDArray[np.bool_]) -> Floats:
    total: Floats = answers.yes[:, asked].sum(1) + answers.truth[asked].sum()
    return total


def kept_share(scores: Floats) -> Floats:
    """Return the mean over tasks of an arm's score over the unpruned model's, (A,).

    Parameters
    ----------
    scores : array, (A, tasks)
        The unpruned model is arm 0. Tasks in which it scores nothing are left out.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        counts = np.isfinite(scores) & (scores[:1] > 0)
        return np.where(counts, scores / scores[:1], 0).sum(-1) / counts.sum(-1)


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of a split of discordant pairs: McNemar's exact test."""
    total = wins + losses
    tail = sum(math.comb(total, number) for number in range(min(wins, losses) + 1))
    return float(min(1.0, 2 * tail / 2**total))


def compare(answers: Answers, first: Arm, second: Arm) -> dict[str, Any]:
    """Compare two arms on the same questions.

    Parameters
    ----------
    answers : Answers
    first, second : (method, keep)

    Returns
    -------
    dict
        `difference` in accuracy over all questions whose answer is known, first minus second, with its `interval`
        (95 %, see `zooprune.evaluation.intervals`; None with a single scene); `wins` and `losses` of the first, in
        questions; and `p` of the exact sign test over scenes: a scene goes to the arm that has more of its questions
        right. Where every question has a scene of its own and there is one draw, that is McNemar's test.

    Raises
    ------
    ValueError
        If an arm has no rows, or no answer is known.
    """
    gap = answers.right[answers.number(first)] - answers.right[answers.number(second)]
    known = ~np.isnan(gap)
    if not known.any():
        raise ValueError("no answer is known, so no method is right more often; give answers with the questions")
    gap, cluster = gap[known], _renumbered(answers.cluster[known])
    weights, mean = np.full(len(gap), 1 / len(gap)), float(gap.mean())
    of_scenes = np.bincount(cluster, gap).round(9)
    return {
        "first": list(first),
        "second": list(second),
        "difference": mean,
        "interval": difference(weights * gap, weights * (gap - mean), weights, cluster),
        "wins": int((gap > 0).sum()),
        "losses": int((gap < 0).sum()),
        "p": sign_test(int((of_scenes > 0).sum()), int((of_scenes < 0).sum())),
    }


def kept_share_interval(answers: Answers, number: int) -> Interval | None:
    """Return the interval of the share that an arm keeps of the unpruned score.

    The share is 1 plus the gains and losses of all questions, so the interval is that of a difference.

    Returns
    -------
    tuple of float or None
        None for the unpruned model, without a score, and where a mean over tasks has fewer than `LEAST_PER_TASK`
        questions in one of them.
    """
    scores = task_scores(answers)[[0, number]]
    counted = [(place, task) for place, task in enumerate(answers.kinds) if scores[0, place] > 0]
    known = ~np.isnan(answers.truth)
    sizes = [int((answers.of(task) & known).sum()) for _, task in counted]
    if number == 0 or not counted or (len(counted) > 1 and min(sizes) < LEAST_PER_TASK):
        return None
    changes, influences, weights = (np.zeros(len(answers.ids)) for _ in range(3))
    for place, task in counted:
        asked = answers.of(task) & known
        full, score = scores[0, place], scores[1, place]
        if not np.isfinite(score):
            return None
        before, after = answers.right[0, asked], answers.right[number, asked]
        weights[asked] = before / before.sum() / len(counted)
        if task == EXISTENCE:
            truth, before, after = answers.truth[asked], answers.yes[0, asked], answers.yes[number, asked]
            total, of_full = _existence(answers, asked)[[number, 0]]
            # F1 is twice the hits over `total`, so this is exactly how much one "yes" more or less changes it.
            changes[asked] = (after - before) * (2 * truth - full) / total
            influences[asked] = (2 * after * truth - score * (after + truth)) / total
            influences[asked] -= score / full * (2 * before * truth - full * (before + truth)) / of_full
        else:
            changes[asked] = (after - before) / len(before)
            influences[asked] = (after - score / full * before) / len(before)
        changes[asked] /= full * len(counted)
        influences[asked] /= full * len(counted)
    asked = np.isin(answers.tasks, [task for _, task in counted]) & known
    around = difference(changes[asked], influences[asked], weights[asked], _renumbered(answers.cluster[asked]))
    if around is None:
        return None
    # No method can do better than all right.
    best = float(np.mean([1 / scores[0, place] for place, _ in counted]))
    return max(0.0, 1 + around[0]), min(best, 1 + around[1])


def _renumbered(cluster: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the clusters of some of the questions, numbered without gaps."""
    return np.unique(cluster, return_inverse=True)[1]


def summarise(answers: Answers) -> list[dict[str, Any]]:
    """Return all figures of every arm, the unpruned model first.

    Parameters
    ----------
    answers : Answers

    Returns
    -------
    list of dict
        `method`, `keep`, `draws`, `questions`, `scenes` (clusters of questions that share an image);
        `tasks` with `questions`, `score`, `accuracy`, `agreement` and, for "existence", `f1` and `yes_ratio`;
        `accuracy` over all questions;
        `kept_share` of the unpruned score, mean over tasks, and `kept_share_interval`;
        `agreement` with the unpruned model's replies, and `agreement_interval`;
        `evidence_recall`, mean over questions that have regions;
        means of `visual_tokens`, `kept_tokens`, `prompt_tokens`, `flops` and `kv_bytes`;
        `seconds`, medians over the timed questions of every stage, `first_token` (all but decode) and `total`.
        None if a figure is not known.
    """
    scores = task_scores(answers)
    kept = kept_share(scores)
    table = []
    for number, (method, keep) in enumerate(answers.arms):
        rows = answers.rows[number]
        table.append(
            {
                "method": method,
                "keep": keep,
                "draws": len({row["seed"] for row in rows}),
                "questions": len(answers.ids),
                "scenes": int(answers.cluster.max()) + 1,
                "tasks": {
                    task: _task(answers, number, task, scores[number, place])
                    for place, task in enumerate(answers.kinds)
                },
                "accuracy": _mean(answers.right[number]),
                "kept_share": _finite(kept[number]),
                "kept_share_interval": kept_share_interval(answers, number),
                "agreement": float(answers.same[number].mean()),
                "agreement_interval": None if number == 0 else share(answers.same[number], answers.cluster),
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
    asked = answers.of(task)
    figures = {
        "questions": int(asked.sum()),
        "score": _finite(score),
        "accuracy": _mean(answers.right[number, asked]),
        "agreement": float(answers.same[number, asked].mean()),
    }
    if task == EXISTENCE:
        figures |= {"f1": _finite(score), "yes_ratio": float(answers.yes[number, asked].mean())}
    return figures


def _seconds(rows: Sequence[Row]) -> dict[str, float] | None:
    timed = [row["seconds"] for row in rows if row["seconds"]]
    if not timed:
        return None
    whole = [taken | {"first_token": taken["total"] - taken.get("decode", 0.0)} for taken in timed]
    stages = dict.fromkeys(name for taken in whole for name in taken)
    return {stage: float(np.median([taken.get(stage, 0.0) for taken in whole])) for stage in stages}


def _mean(values: Sequence[float] | Floats) -> float | None:
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
