"""Calibration on made-up answers, whose quality is known, and plans."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from torch import nn

from conftest import clip_llama, make_processor
from test_evaluation_runner import make_examples, make_subject
from zooprune import ZooPrune, prune
from zooprune.evaluation.calibrate import SHARES, calibrate, lower_bound, questions_needed, search, worth
from zooprune.evaluation.runner import Setting
from zooprune.plan import Plan
from zooprune.policy import Policy

KEEPS = (192, 128, 64)


class MadeUp:
    """Answers to as many questions as wanted, right with a known probability for each setting."""

    def __init__(self, quality: dict[tuple[str, int], float], questions: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.quality = quality
        self.good = {key: rng.random(questions) < chance for key, chance in quality.items()}
        self.asked = dict.fromkeys(quality, 0)

    def __call__(self, settings, first, last):
        counts = []
        for setting in settings:
            key = setting.method, setting.keep
            assert self.asked[key] == first, "every question is asked once"
            self.asked[key] = last
            counts.append((int(self.good[key][first:last].sum()), last - first))
        return counts

    def search(self, quality: float) -> list[tuple[str, int]]:
        """Return what is certified."""
        methods = list(dict.fromkeys(method for method, _ in self.quality))
        chains = [[Setting(method, keep) for keep in KEEPS] for method in methods]
        questions = len(next(iter(self.good.values())))
        found = search(chains, self, questions, quality=quality, confidence=0.95)
        return [(one.setting.method, one.setting.keep) for one in found if not one.dropped]


def curve(method: str, *chances: float) -> dict[tuple[str, int], float]:
    return {(method, keep): chance for keep, chance in zip(KEEPS, chances, strict=True)}


@pytest.mark.parametrize("successes, trials", [(0, 10), (1, 10), (9, 10), (10, 10), (299, 299), (950, 1000)])
def test_the_lower_bound_is_clopper_and_pearsons(successes, trials):
    expected = binomtest(successes, trials, alternative="greater").proportion_ci(0.95, method="exact").low
    assert lower_bound(successes, trials, 0.95) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("quality, needed", [(0.99, 299), (0.95, 59), (0.9, 29)])
def test_how_many_questions_it_takes(quality, needed):
    assert questions_needed(quality, 0.95) == needed
    assert lower_bound(needed, needed, 0.95) >= quality > lower_bound(needed - 1, needed - 1, 0.95)


def test_the_smallest_budget_that_is_good_enough():
    made_up = MadeUp(curve("zoo", 1.0, 1.0, 0.8) | curve("random", 0.9, 0.6, 0.3), 400, seed=0)
    assert made_up.search(0.97) == [("zoo", 192), ("zoo", 128)]


def test_what_fails_costs_few_questions():
    made_up = MadeUp(curve("zoo", 1.0, 1.0, 0.5) | curve("random", 0.5, 0.5, 0.5), 4000, seed=0)
    made_up.search(0.99)
    assert made_up.asked[("zoo", 128)] == 4000
    assert max(made_up.asked[key] for key in (("zoo", 64), ("random", 192), ("random", 64))) <= 256


@pytest.mark.parametrize("seed", range(5))
def test_dropping_early_changes_no_outcome(seed):
    made_up = MadeUp(curve("zoo", 0.99, 0.97, 0.95) | curve("random", 0.98, 0.94, 0.96), 600, seed)
    expected = []
    for method in ("zoo", "random"):
        for keep in KEEPS:
            if lower_bound(int(made_up.good[(method, keep)].sum()), 600, 1 - 0.05 / 2) < 0.95:
                break
            expected.append((method, keep))
    assert made_up.search(0.95) == expected


@pytest.mark.parametrize(
    "quality",
    [
        curve("zoo", 0.949, 0.949, 0.949),
        curve("zoo", 0.99, 0.949, 0.949) | curve("random", 0.949, 0.93, 0.9),
        # A smaller budget may do better by chance than a larger one.
        curve("zoo", 0.9, 0.949, 0.949) | curve("random", 0.98, 0.9, 0.949),
        # Four chances to be wrong: each method may take a fourth of the error.
        {
            key: chance
            for method in ("zoo", "random", "diversity", "sensitivity")
            for key, chance in curve(method, 0.949, 0.949, 0.949).items()
        },
    ],
)
def test_false_certificates_are_as_rare_as_promised(quality):
    runs = 800
    wrong = sum(any(quality[one] < 0.95 for one in MadeUp(quality, 300, seed).search(0.95)) for seed in range(runs))
    # Three standard errors of a rate of 5 % at most.
    assert wrong / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_false_certificates_stay_rare_where_questions_share_a_scene():
    """What happens to one question of a scene happens to all five."""
    runs, wrong, blind = 600, 0, 0
    (example, *_) = make_examples(2)
    examples = [replace(example, id=str(n), scenes=(str(n // 5),)) for n in range(1500)]
    assert worth(examples) == pytest.approx(1 / 5)
    for seed in range(runs):
        good = np.repeat(np.random.default_rng(seed).random(300) < 0.949, 5)

        def ask(settings, first, last, good=good):
            return [(int(good[first:last].sum()), last - first) for _ in settings]

        for counted in (worth(examples), 1.0):
            (found,) = search([[Setting("zoo", 64)]], ask, 1500, quality=0.95, confidence=0.95, worth=counted)
            if counted < 1:
                wrong += not found.dropped
            else:
                blind += not found.dropped
    assert wrong / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5 < blind / runs


def test_questions_of_one_scene_are_too_few():
    (example, *_) = make_examples(2)
    examples = [replace(example, id=str(n), scenes=("same",)) for n in range(400)]
    assert "there are 400 that share scenes and count for 1" in refused(examples)


class Replying:
    """A subject that replies as the tables say."""

    name = "made-up"

    def __init__(self, replies: dict, right: str) -> None:
        self.replies, self.right, self.model = replies, right, nn.Module()

    def prepare(self, examples):
        return None

    def reply(self, examples, inputs, setting):
        said = [self.replies[(setting.method, setting.keep)](int(example.id)) for example in examples]
        return [
            {"reply": reply, "right": reply == self.right if example.answers else None}
            for example, reply in zip(examples, said, strict=True)
        ]


def numbered(count: int, *, labelled: bool) -> list:
    (example, *_) = make_examples(2)
    answers = ("cat",) if labelled else ()
    return [type(example)(str(n), "questions", example.images, "what?", answers) for n in range(count)]


def test_with_answers_only_what_the_unpruned_model_has_right_counts():
    replies = {
        ("none", None): lambda n: "dog" if n % 4 == 0 else "cat",
        ("zoo", 128): lambda n: "pig" if n % 4 == 0 else "cat",
        ("zoo", 64): lambda n: "cat" if n % 3 else "dog",
    }
    told = []
    subject = Replying(replies, "cat")
    plan, candidates = calibrate(
        subject, numbered(100, labelled=True), ["zoo"], [64, 128], quality=0.95, progress=told.append
    )
    assert (plan.model, plan.method, plan.keep) == ("made-up", "zoo", 128)
    assert plan.certified["measure"] == "right answers kept"
    assert (plan.certified["successes"], plan.certified["trials"]) == (75, 75)
    assert plan.certified["lower_bound"] == pytest.approx(0.05 ** (1 / 75))
    assert [one.dropped for one in candidates] == [False, True] and sum(told) == 100


def test_without_answers_agreement_counts():
    replies = {("none", None): lambda n: "Dog.", ("zoo", 128): lambda n: "dog", ("zoo", 64): lambda n: "cat"}
    plan, _ = calibrate(Replying(replies, ""), numbered(60, labelled=False), ["zoo"], [128, 64], quality=0.95)
    assert plan.keep == 128 and plan.certified["measure"] == "agreement" and plan.certified["trials"] == 60


def refused(examples, methods=("zoo",), keeps=(128,), replies=None, **options) -> str:
    replies = replies or {("none", None): lambda n: "dog", ("zoo", 128): lambda n: "cat"}
    with pytest.raises(ValueError) as error:
        calibrate(Replying(replies, "dog"), examples, methods, keeps, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_certified_is_said_in_a_sentence():
    few, many = numbered(50, labelled=False), numbered(60, labelled=True)
    assert "takes at least 299 questions, if all of them go well, and there are 50" in refused(few)
    assert "among 2 methods takes at least 368" in refused(few, methods=("zoo", "random"))
    assert "no setting can be certified to keep 95.0% of the answers: zoo with keep=128 kept 0 of 16" in refused(
        many, quality=0.95
    )
    wrong = {("none", None): lambda n: "dog" if n < 20 else "pig", ("zoo", 128): lambda n: "dog"}
    assert "too few of them right" in refused(many, replies=wrong, quality=0.95)


def test_bad_arguments():
    examples = numbered(60, labelled=False)
    assert "quality=1.5 is not between" in refused(examples, quality=1.5)
    assert "confidence=0.0 is not between" in refused(examples, confidence=0.0)
    assert "at least one method" in refused(examples, methods=())
    assert "all numbers of tokens or all shares" in refused(examples, keeps=(64, 0.5), quality=0.9)
    assert list(SHARES) == sorted(SHARES, reverse=True)


def test_a_plan_is_what_was_saved(tmp_path):
    plan = Plan("bundled", "zoo", 0.25, {"estimator": "jvp"}, Policy("original", "tile", "rows"), {"quality": 0.99})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == Plan.load(json.loads((tmp_path / "plan.json").read_text())) == plan
    assert plan.pruner() == ZooPrune(keep=0.25, estimator="jvp")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


GOOD = {"version": 1, "model": "bundled", "method": "zoo", "keep": 64}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 2}, "not a plan of version 1"),
        ({"budget": 3}, "does not know budget"),
        ({"method": "zooo"}, "did you mean 'zoo'"),
        ({"method": 3}, "method must be a str"),
        ({"keep": 0}, "at least 1"),
        ({"keep": "64"}, "must be an int"),
        ({"options": {"steps": 1}}, "no option steps"),
        ({"options": []}, "options must be a dict"),
        ({"positions": "anew"}, "positions='anew' is not one of auto, contiguous, original"),
    ],
)
def test_a_bad_plan_is_refused(change, message, tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=message) as error:
        Plan.load(path)
    assert str(path) in str(error.value)


def test_a_plan_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "plan.json").write_text("keep: 64")
    with pytest.raises(ValueError, match="is not JSON"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="lacks method, keep"):
        Plan.load({"version": 1, "model": "bundled"})


def test_prune_takes_a_plan():
    model = clip_llama()
    plan = Plan.load(GOOD | {"keep": 9, "positions": "original", "scope": "tile"})
    with prune(model, plan) as session:
        assert (session.pruner, session.policy) == (ZooPrune(keep=9), Policy("original", "tile"))
    with pytest.raises(TypeError, match="a plan says all about how to prune"):
        prune(model, plan, scope="prompt")
    with pytest.raises(TypeError, match="a plan says all about how to prune"):
        prune(model, plan, keep=3)


def test_calibrating_a_model():
    subject = make_subject()
    assert make_processor().tokenizer.padding_side == "left"
    plan, candidates = calibrate(subject, numbered_for(subject), ["zoo"], [36, 1], quality=0.7, batch=4)
    # With all 36 tokens nothing changes.
    assert candidates[0].successes == candidates[0].trials == 16 and not candidates[0].dropped
    assert plan.keep in (36, 1)


def numbered_for(subject) -> list:
    examples = make_examples(16)
    return [type(one)(one.id, one.task, one.images, one.question) for one in examples]
