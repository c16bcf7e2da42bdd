"""Scores, intervals and tests against values worked out by hand and by scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from zooprune.data.examples import Region
from zooprune.evaluation import metrics
from zooprune.evaluation.evidence import kept_regions
from zooprune.evaluation.metrics import (
    arrange,
    compare,
    is_right,
    kept_share,
    kept_share_interval,
    normalise,
    sign_test,
    summarise,
)
from zooprune.reports import ImageReport
from zooprune.tokens import NEWLINE, Selection

NONE, ZOO, RANDOM = ("none", None), ("zoo", 64), ("random", 64)


def row(method, keep, one, reply, answers, *, task="count", seed=None, seconds=None, evidence=None, scenes=()):
    right = is_right(reply, answers) if answers else None
    return {
        "model": "m", "method": method, "keep": keep, "seed": seed, "id": one, "task": task, "reply": reply,
        "answers": list(answers), "right": right, "visual_tokens": 576, "kept_tokens": 576 if keep is None else keep,
        "prompt_tokens": 600, "flops": 1, "kv_bytes": 1, "seconds": seconds or {}, "evidence": evidence,
        "scenes": list(scenes),
    }  # fmt: skip


def run(replies, answers, tasks):
    """Return the rows of replies by arm; several lists of replies are draws."""
    rows = []
    for (method, keep), draws in replies.items():
        for seed, said in enumerate(draws):
            for number, (reply, right, task) in enumerate(zip(said, answers, tasks, strict=True)):
                rows.append(row(method, keep, str(number), reply, (right,), task=task, seed=seed if keep else None))
    return rows


def test_replies_are_compared_without_case_blanks_and_full_stop():
    assert normalise(" Two Dogs. ") == "two dogs"
    assert is_right("Yes.", ("no", "YES")) and not is_right("yes, it is", ("yes",)) and not is_right("", ("yes",))


def test_existence_is_scored_as_pope_does():
    said = ["yes", "yes", "yes", "no", "no"]
    right = ["yes", "yes", "no", "yes", "no"]
    answers = arrange(run({NONE: [right], ZOO: [said]}, right, ["existence"] * 5))
    _, zoo = summarise(answers)
    figures = zoo["tasks"]["existence"]
    # Two true positives, one false, one missed.
    assert figures["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert figures["accuracy"] == pytest.approx(3 / 5) and figures["yes_ratio"] == pytest.approx(3 / 5)
    assert zoo["kept_share"] == pytest.approx(2 / 3) and zoo["agreement"] == pytest.approx(3 / 5)


def test_the_share_kept_is_the_mean_over_tasks_and_draws():
    right = ["1", "2", "3", "4", "a", "b"]
    tasks = ["count"] * 4 + ["colour"] * 2
    full = ["1", "2", "3", "x", "a", "b"]
    draws = [["1", "2", "x", "x", "a", "b"], ["1", "x", "x", "x", "a", "x"]]
    summary = summarise(arrange(run({NONE: [full], RANDOM: draws}, right, tasks)))
    random = summary[1]
    assert random["draws"] == 2
    assert random["tasks"]["count"]["score"] == pytest.approx(3 / 8)
    assert random["tasks"]["colour"]["score"] == pytest.approx(3 / 4)
    assert random["kept_share"] == pytest.approx(((3 / 8) / (3 / 4) + 3 / 4) / 2)
    assert summary[0]["kept_share"] == 1 and summary[0]["kept_share_interval"] is None


def test_tasks_the_unpruned_model_fails_are_left_out():
    np.testing.assert_allclose(kept_share(np.array([[0.0, 0.5], [0.5, 0.25]])), [1, 0.5])


def test_unknown_answers_leave_agreement():
    rows = [row("none", None, "a", "cat", ()), row("none", None, "b", "dog", ()),
            row("zoo", 64, "a", "Cat.", ()), row("zoo", 64, "b", "pig", ())]  # fmt: skip
    answers = arrange(rows)
    zoo = summarise(answers)[1]
    assert zoo["kept_share"] is None and zoo["kept_share_interval"] is None and zoo["accuracy"] is None
    assert zoo["agreement"] == 0.5
    with pytest.raises(ValueError, match="no answer is known"):
        compare(answers, ZOO, NONE)


def test_only_questions_that_all_have_answered_count():
    rows = run({NONE: [["1", "2"]], ZOO: [["1", "2"]]}, ["1", "2"], ["count"] * 2)
    assert arrange(rows[:-1]).ids == ("0",)
    with pytest.raises(ValueError, match="no question was answered by every method"):
        arrange(rows[:1] + rows[-1:])
    with pytest.raises(ValueError, match="the unpruned model has no rows"):
        arrange(rows[2:])


@pytest.mark.parametrize("wins, losses", [(0, 0), (1, 0), (5, 0), (0, 5), (7, 3), (3, 7), (20, 31), (400, 500)])
def test_the_sign_test_is_scipys(wins, losses):
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_a_comparison_counts_discordant_questions():
    right = [str(number) for number in range(10)]
    first = [*right[:8], "x", "x"]
    second = ["x"] * 5 + right[5:9] + ["x"]
    found = compare(arrange(run({NONE: [right], ZOO: [first], RANDOM: [second]}, right, ["count"] * 10)), ZOO, RANDOM)
    assert (found["wins"], found["losses"]) == (5, 1) and found["difference"] == pytest.approx(0.4)
    assert found["p"] == pytest.approx(binomtest(5, 6).pvalue)
    assert found["interval"][0] < 0.4 < found["interval"][1]


def test_one_token_is_not_all_of_them():
    right = ["1", "2", "3"]
    rows = run({NONE: [right], ("zoo", 1): [["1", "x", "x"]]}, right, ["count"] * 3)
    rows += run({("zoo", 1.0): [right]}, right, ["count"] * 3)
    summary = summarise(arrange(rows))
    assert [(type(arm["keep"]), arm["accuracy"]) for arm in summary[1:]] == [(int, 1 / 3), (float, 1.0)]
    answers = arrange(rows)
    assert compare(answers, ("zoo", 1.0), ("zoo", 1))["difference"] == pytest.approx(2 / 3)
    assert compare(answers, ("zoo", 1), ("zoo", 1.0))["difference"] == pytest.approx(-2 / 3)


@pytest.mark.parametrize("counts", [(20, 3, 3), (300, 40, 10)])
def test_what_a_question_adds_sums_to_the_share_kept(counts):
    """Gains and losses by question are an exact account of the difference, F1 among them."""
    rng = np.random.default_rng(counts)
    tasks = ["existence"] * counts[0] + ["count"] * 40 + ["colour"] * 30
    right = list(rng.choice(["yes", "no"], counts[0])) + ["1"] * 70
    said = [
        [answer if rng.random() < chance else "no" if answer == "yes" else "yes" if answer == "no" else "x"
         for answer in right] for chance in (0.9, 0.7)
    ]  # fmt: skip
    answers = arrange(run({NONE: [said[0]], ZOO: [said[1]]}, right, tasks))
    seen = {}

    def spy(changes, influences, weights, cluster):
        seen.update(changes=changes.sum(), influences=influences.sum(), weights=weights.sum())
        return (-0.1, 0.1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "difference", spy)
        kept_share_interval(answers, 1)
    assert 1 + seen["changes"] == pytest.approx(summarise(answers)[1]["kept_share"], abs=1e-12)
    assert seen["influences"] == pytest.approx(0, abs=1e-12) and seen["weights"] == pytest.approx(1)


def test_a_mean_over_tasks_needs_twenty_questions_a_task():
    def interval(count):
        right = ["1"] * 2 * count
        return summarise(arrange(run({NONE: [right], ZOO: [right]}, right, ["count"] * count + ["sign"] * count)))[1][
            "kept_share_interval"
        ]

    assert interval(19) is None
    low, high = interval(20)
    assert 0.85 < low < 0.95 and high == 1


def test_questions_of_one_scene_say_nothing_about_others():
    right = ["1"] * 30
    rows = run({NONE: [right], ZOO: [["x", *right[1:]]]}, right, ["count"] * 30)
    for one in rows:
        one["scenes"] = ["a"]
    answers = arrange(rows)
    zoo = summarise(answers)[1]
    assert zoo["scenes"] == 1 and zoo["kept_share_interval"] is None and zoo["agreement_interval"] is None
    assert compare(answers, ZOO, NONE)["interval"] is None


def test_the_sign_test_counts_scenes():
    right = ["1"] * 12
    first, second = ["1"] * 8 + ["x"] * 4, ["x"] * 8 + ["1"] * 4
    rows = run({NONE: [right], ZOO: [first], RANDOM: [second]}, right, ["count"] * 12)
    for one in rows:
        one["scenes"] = [str(int(one["id"]) // 4)]
    found = compare(arrange(rows), ZOO, RANDOM)
    assert (found["wins"], found["losses"]) == (8, 4)
    assert found["p"] == pytest.approx(binomtest(2, 3).pvalue)


def test_the_interval_is_as_wide_as_theory_says():
    rng = np.random.default_rng(1)
    right = ["1"] * 400
    said = list(rng.choice(["1", "2"], 400, p=[0.8, 0.2]))
    zoo = summarise(arrange(run({NONE: [right], ZOO: [said]}, right, ["count"] * 400)))[1]
    low, high = zoo["kept_share_interval"]
    share = zoo["kept_share"]
    assert low < share < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(share * (1 - share) / 400), rel=0.1)


def test_seconds_are_medians_of_the_timed_rows():
    rows = run({NONE: [["1"] * 3]}, ["1"] * 3, ["count"] * 3)
    for one, total in zip(rows, (3.0, 1.0, 10.0), strict=True):
        one["seconds"] = {"encode": 1.0, "decode": 0.5, "total": total}
    (full,) = summarise(arrange(rows))
    assert full["seconds"] == {"encode": 1.0, "decode": 0.5, "total": 3.0, "first_token": 2.5}


def grid_report(kept, rows=4, columns=4, frames=1):
    count = rows * columns * frames
    place = torch.arange(count)
    positions = torch.stack([place // (rows * columns), place * 0, place // columns % rows, place % columns], dim=-1)
    return ImageReport(0, Selection(torch.tensor(sorted(kept)), count), positions)


def test_a_region_is_kept_when_one_of_its_patches_is():
    quarter = Region(0, (0.5, 0.0, 1.0, 0.5))
    assert kept_regions([quarter], [grid_report([0, 15])], 1) == {"regions": 1, "kept": 0}
    assert kept_regions([quarter], [grid_report([7])], 1) == {"regions": 1, "kept": 1}
    # Smaller than a patch and off its centre: the patch that holds it counts.
    speck = Region(0, (0.76, 0.76, 0.78, 0.78))
    assert kept_regions([speck], [grid_report([15])], 1) == {"regions": 1, "kept": 1}
    assert kept_regions([speck], [grid_report([10])], 1) == {"regions": 1, "kept": 0}
    assert kept_regions([Region(0, (0.98, 0.98, 1.0, 1.0))], [grid_report([15])], 1) == {"regions": 1, "kept": 1}
    assert kept_regions([], [grid_report([7])], 1) is None


def test_regions_of_several_images():
    regions = [Region(0, (0.0, 0.0, 0.2, 0.2)), Region(1, (0.0, 0.0, 0.2, 0.2))]
    assert kept_regions(regions, [grid_report([5]), grid_report([0])], 2) == {"regions": 2, "kept": 1}
    # One budget for the whole prompt: images are told apart by their frames.
    assert kept_regions(regions, [grid_report([16], frames=2)], 2) == {"regions": 2, "kept": 1}


def test_regions_of_tiled_images_are_not_looked_for():
    assert kept_regions([Region(0, (0, 0, 1, 1))], [grid_report([0]), grid_report([0])], 1) is None
    report = grid_report([0])
    report.positions[8:, 1] = 1
    assert kept_regions([Region(0, (0, 0, 1, 1))], [report], 1) is None


def test_a_class_token_shows_no_patch():
    report = grid_report([0])
    report.positions[0, 2:] = NEWLINE
    assert kept_regions([Region(0, (0, 0, 1, 1))], [report], 1) == {"regions": 1, "kept": 0}
