"""The search of a method's options: what it maximises, and that it repeats itself."""

from __future__ import annotations

import math

import optuna
import pytest
import torch

from test_evaluation_runner import make_examples, make_subject
from zooprune import get_pruner, list_pruners, prune
from zooprune.evaluation import tuning
from zooprune.evaluation.tuning import tune
from zooprune.pruners import pruner_class

TUNABLE = [name for name in list_pruners() if pruner_class(name).tunable]


@pytest.fixture(scope="module")
def subject():
    return make_subject()


@pytest.mark.parametrize("name", TUNABLE)
def test_published_options_lie_in_the_range_that_is_searched(name):
    published = get_pruner(name)
    for option, (low, high) in pruner_class(name).tunable.items():
        assert 0 < low <= getattr(published, option) <= high
        for value in (low, high):
            get_pruner(name, **{option: value})


@pytest.mark.parametrize("name", TUNABLE)
def test_the_best_trial_is_planned_and_the_published_options_are_the_first(subject, name):
    heard = []
    plan, trials = tune(subject, make_examples(), name, 9, trials=4, batch=2, progress=heard.append)
    published = get_pruner(name)
    assert trials[0].options == {option: getattr(published, option) for option in pruner_class(name).tunable}
    best = max(trials, key=lambda trial: trial.likeness)
    assert (plan.model, plan.method, plan.keep, plan.options) == ("tiny", name, 9, best.options)
    assert heard == [1] * 4 and len({tuple(trial.options.values()) for trial in trials}) == 4
    for trial in trials:
        for option, (low, high) in pruner_class(name).tunable.items():
            assert low <= trial.options[option] <= high


def test_likeness_is_the_mean_cosine_of_last_hidden_states(subject):
    examples = make_examples()
    _, trials = tune(subject, examples, "vflowopt", 9, trials=2, batch=3)
    for trial in trials:
        cosines = []
        for example in examples:
            states = []
            for pruner in (get_pruner("none"), get_pruner("vflowopt", keep=9, **trial.options)):
                with prune(subject.model, pruner) as session, torch.no_grad():
                    inputs = session.prepare(subject.prepare([example]))
                    states.append(subject.model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1].double())
            cosines.append(float(states[0] @ states[1] / states[0].norm() / states[1].norm()))
        assert trial.likeness == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
        assert trial.likeness < 0.999


def test_keeping_all_changes_nothing_and_the_published_options_win_the_tie(subject):
    plan, trials = tune(subject, make_examples(), "vflowopt", 1.0, trials=3)
    assert all(trial.likeness == pytest.approx(1, abs=1e-6) for trial in trials)
    assert len({trial.likeness for trial in trials}) == 1 and plan.options == trials[0].options


def test_a_seed_repeats_the_search(subject):
    def searched(seed, **more):
        return tune(subject, make_examples(2), "vflowopt", 9, trials=4, seed=seed, **more)[1]

    assert searched(0) == searched(0) != searched(1)
    in_batches = searched(0, batch=1)
    assert [trial.options for trial in in_batches] == [trial.options for trial in searched(0)]


def test_the_model_and_optuna_are_left_as_they_were(subject, capfd):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    tune(subject, make_examples(1), "vflowopt", 9, trials=2)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert capfd.readouterr().err == ""
    assert "generate" not in vars(subject.model)


def test_what_cannot_be_tuned_is_explained(subject):
    examples = make_examples(1)
    with pytest.raises(ValueError, match="zoo has no options that depend on the model; methods that have: vflowopt"):
        tune(subject, examples, "zoo", 9)
    with pytest.raises(ValueError, match="trials=0 must be at least 1"):
        tune(subject, examples, "vflowopt", 9, trials=0)
    with pytest.raises(ValueError, match="batch=0 must be at least 1"):
        tune(subject, examples, "vflowopt", 9, batch=0)
    with pytest.raises(ValueError, match="no question to tune on"):
        tune(subject, [], "vflowopt", 9)
    with pytest.raises(ValueError, match="keep=0"):
        tune(subject, examples, "vflowopt", 0)


def test_states_that_are_not_finite_are_said_so(subject, monkeypatch):
    broken = iter([torch.ones(1, 4), torch.full((1, 4), math.nan)])
    monkeypatch.setattr(tuning, "_last_state", lambda *_: next(broken))
    with pytest.raises(ValueError, match="NaN or infinity"):
        tune(subject, make_examples(1), "vflowopt", 9, trials=1)
