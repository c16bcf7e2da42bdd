"""Find the options of a method for a model, without right answers.

Some methods have options that depend on the model, and their papers publish them for one model only. The search
maximises the mean cosine between two hidden states of the language model: its last one at the last position of the
pruned prompt, and the same of the unpruned prompt. This is the objective of VFlowOpt (arXiv 2508.05211), with another
Bayesian search: tree-structured Parzen estimators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import optuna
except ImportError:
    raise ImportError("optuna is needed to tune; run: pip install 'zooprune[tune]'") from None

from zooprune.data.examples import Example
from zooprune.evaluation.runner import Setting, Subject
from zooprune.generation import prune
from zooprune.plan import Plan
from zooprune.pruners import list_pruners, pruner_class
from zooprune.sensitivity.weight_cache import held


@dataclass(frozen=True)
class Trial:
    """A trial of the search.

    Parameters
    ----------
    options : dict of str to float
    likeness : float
        The mean cosine between hidden states with and without pruning.
    """

    options: dict[str, float]
    likeness: float


def check_method(method: str) -> None:
    """Raise a ValueError if a method does not exist or has no options that depend on the model."""
    if not pruner_class(method).tunable:
        others = [name for name in list_pruners() if pruner_class(name).tunable]
        raise ValueError(f"{method} has no options that depend on the model; methods that have: {', '.join(others)}")


def tune(
    subject: Subject,
    examples: Sequence[Example],
    method: str,
    keep: int | float,
    *,
    trials: int = 50,
    seed: int = 0,
    batch: int = 8,
    progress: Callable[[int], None] = lambda trials: None,
) -> tuple[Plan, list[Trial]]:
    """Search the options of a method that depend on the model.

    Parameters
    ----------
    subject : Subject
    examples : sequence of Example
        Their images stay in memory for all trials. Answers are not used.
    method : str
        A method with `tunable` options.
    keep : int or float
        The budget; the options are found for it.
    trials : int
        The number of options to try. The first are those of the publication.
    seed : int
        Seed of the search.
    batch : int
        Questions per batch.
    progress : callable
        Called with the number of trials that were just made.

    Returns
    -------
    plan : Plan
        With the options of the best trial; of several, the first.
    trials : list of Trial
        In the order of the search.

    Raises
    ------
    ValueError
        If the method has no options that depend on the model, a number is not positive, there is no question, or the
        model's states are not finite.
    """
    for name, value in (("trials", trials), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if not examples:
        raise ValueError("there is no question to tune on; give at least one")
    check_method(method)
    ranges = pruner_class(method).tunable
    published = Setting(method, keep).pruner()
    batches = [subject.prepare(examples[first : first + batch]) for first in range(0, len(examples), batch)]
    done: list[Trial] = []
    with held(subject.model), _quietly():
        whole = [_last_state(subject, inputs, Setting()) for inputs in batches]
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.enqueue_trial({name: getattr(published, name) for name in ranges})
        for _ in range(trials):
            asked = study.ask()
            options = {name: asked.suggest_float(name, low, high, log=True) for name, (low, high) in ranges.items()}
            setting = Setting(method, keep, options=options)
            cosines = [
                F.cosine_similarity(_last_state(subject, inputs, setting), states, dim=-1)
                for inputs, states in zip(batches, whole, strict=True)
            ]
            likeness = float(torch.cat(cosines).mean())
            if not math.isfinite(likeness):
                raise ValueError("the hidden states hold NaN or infinity; run the model in bfloat16 or float32")
            study.tell(asked, likeness)
            done.append(Trial(options, likeness))
            progress(1)
    best = max(done, key=lambda trial: trial.likeness)
    return Plan(subject.name, method, keep, best.options), done


def _last_state(subject: Subject, inputs: Any, setting: Setting) -> Tensor:
    """Return the last hidden state at the last position of each prompt, float32, (B, d)."""
    with torch.no_grad(), prune(subject.model, setting.pruner()) as session:
        # Without the head, whose logits nobody reads.
        states: Tensor = subject.model.model(**session.prepare(inputs)).last_hidden_state
    return states[:, -1].float()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep optuna from logging."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
