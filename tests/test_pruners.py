from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from conftest import METHODS, pick
from test_sensitivity import golden, golden_projector
from zooprune import ZooPrune, get_pruner, list_pruners, sensitivity
from zooprune.pruners import Pruner, pruner_class, register, registry
from zooprune.sensitivity import estimators
from zooprune.tokens import VisualTokens

GOLDEN = np.load(Path(__file__).parent / "data" / "zoo_sensitivity.npz")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("keep", [1, 7, 30, 99, 0.25, 1.0])
def test_every_method_keeps_its_budget(name, keep, tokens):
    selection = pick(get_pruner(name, keep=keep), tokens)
    expected = min(keep, 30) if isinstance(keep, int) else round(keep * 30)
    assert len(selection) == expected
    assert selection.total == 30
    assert selection.scores.dtype == torch.float32


@pytest.mark.parametrize("name", METHODS)
def test_every_method_repeats_itself_and_touches_nothing(name, tokens):
    before = tokens.features.clone(), tokens.embeddings.clone(), torch.get_rng_state()
    first = pick(get_pruner(name, keep=9), tokens)
    torch.testing.assert_close(first.index, pick(get_pruner(name, keep=9), tokens).index, rtol=0, atol=0)
    after = tokens.features, tokens.embeddings, torch.get_rng_state()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("name", list_pruners())
def test_every_method_is_a_frozen_documented_dataclass(name):
    method = pruner_class(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method().keep = 3
    assert method.__doc__ and method.source


@pytest.mark.parametrize("case", range(int(GOLDEN["num_cases"])), ids=lambda n: str(GOLDEN[f"case{n}_name"]))
def test_zoo_end_to_end_keeps_what_the_official_code_keeps_in_float32(case, monkeypatch):
    data = golden(case)
    projector, features = golden_projector(data), torch.tensor(data["features"])
    raw = torch.tensor(data["directions_raw"])
    units = raw / (raw.norm(dim=-1, keepdim=True) + 1e-12)
    monkeypatch.setattr(estimators, "_unit_directions", lambda *_: units)
    total = len(features)
    tokens = VisualTokens(features, torch.tensor(data["z32"]), projector, torch.zeros(total, 4, dtype=torch.int64))
    pruner = ZooPrune(keep=int(data["k"]), estimator="finite_difference", step=float(data["h"]))
    index = pick(pruner, tokens).index.numpy()
    # Twins have one place between them: either may be taken.
    twins = data["tie_class"]
    assert sorted(twins[index]) == sorted(twins[data["kept_sorted"]])


def test_zoo_takes_the_closed_form_where_it_can(tokens):
    torch.testing.assert_close(
        ZooPrune().score(tokens), sensitivity.closed_form(tokens.projector, tokens.features), rtol=0, atol=0
    )
    other = nn.Sequential(nn.LayerNorm(16), tokens.projector)
    general = dataclasses.replace(tokens, projector=other)
    torch.testing.assert_close(ZooPrune().score(general), sensitivity.jvp(other, tokens.features), rtol=0, atol=0)


@pytest.mark.parametrize("estimator", ["auto", "closed_form", "jvp", "finite_difference"])
def test_a_linear_projector_is_said_so_once(tokens, estimator):
    """No estimator may rank tokens by its own rounding errors."""
    flat = dataclasses.replace(tokens, projector=nn.Linear(16, 20))
    with pytest.warns(UserWarning, match="linear") as caught:
        assert ZooPrune(estimator=estimator).score(flat).tolist() == [1.0] * 30
        ZooPrune(estimator=estimator).score(flat)
    assert len(caught) == 1


def test_a_lookalike_projector_goes_the_general_way(tokens):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.second = nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 20)

        def forward(self, x):
            return self.second(self.act(self.first(nn.functional.layer_norm(x, x.shape[-1:]))))

    lookalike = dataclasses.replace(tokens, projector=Normed())
    expected = sensitivity.jvp(lookalike.projector, tokens.features)
    torch.testing.assert_close(ZooPrune().score(lookalike), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match="rank needs a projector"):
        ZooPrune(rank=4).score(lookalike)


@pytest.mark.parametrize("name", METHODS)
def test_an_image_is_pruned_alike_whatever_came_before_it(name, tokens):
    other = dataclasses.replace(tokens, features=tokens.features.flip(0), embeddings=tokens.embeddings.flip(0))
    pruner = get_pruner(name, keep=9)
    alone = pick(pruner, tokens).index
    pick(pruner, other)
    assert torch.equal(pick(pruner, tokens).index, alone)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert torch.equal(pick(pruner, tokens).index, alone)


def test_fusions_differ(tokens):
    product, total = (set(pick(ZooPrune(keep=9, fusion=f), tokens).index.tolist()) for f in ("product", "sum"))
    assert product != total


def test_the_ablations_do_what_they_say(tokens):
    scores = ZooPrune().score(tokens)
    best = scores.argsort(descending=True)[:5].sort().values
    assert torch.equal(pick(get_pruner("sensitivity", keep=5), tokens).index, best)
    assert pick(get_pruner("diversity", keep=1), tokens).index.tolist() == [0]
    drawn = [tuple(pick(get_pruner("random", keep=5, seed=seed), tokens).index.tolist()) for seed in range(5)]
    assert len(set(drawn)) > 1


@pytest.mark.parametrize(
    "options",
    [
        {"keep": 0}, {"keep": 2.5}, {"estimator": "guess"}, {"fusion": "max"}, {"directions": 0}, {"step": 0.0},
        {"step": float("nan")}, {"step": "small"}, {"rank": 0}, {"rank": 1.5}, {"directions": True}, {"seed": -1},
        {"seed": 0.5},
    ],
)  # fmt: skip
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ZooPrune(**options)


def test_unknown_names_and_options_are_explained():
    with pytest.raises(ValueError, match="did you mean 'random'"):
        get_pruner("randon")
    with pytest.raises(TypeError, match="it has keep"):
        get_pruner("random", estimator="jvp")


def test_other_packages_bring_methods(tokens, monkeypatch):
    @dataclass(frozen=True)
    class LastTokens(Pruner):
        """Keep the last tokens."""

        name: ClassVar[str] = "last"
        source: ClassVar[str] = "a test"

        def score(self, tokens):
            return torch.arange(len(tokens)).float()

    class Entry:
        @staticmethod
        def load():
            return LastTokens

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry] if group == "zooprune.pruners" else [])
    monkeypatch.setattr(registry, "_known", dict(registry._known))
    registry._load_plugins.cache_clear()
    assert pick(get_pruner("last", keep=2), tokens).index.tolist() == [28, 29]
    assert "last" in list_pruners()
    registry._load_plugins.cache_clear()


def test_a_broken_package_leaves_the_others_usable(monkeypatch):
    class Entry:
        name = "broken"

        @staticmethod
        def load():
            raise ImportError("no module named elsewhere")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry])
    registry._load_plugins.cache_clear()
    with pytest.warns(UserWarning, match="'broken' of another package is left out: no module named elsewhere"):
        assert "zoo" in list_pruners()
    registry._load_plugins.cache_clear()


def test_registration_is_checked():
    @dataclass(frozen=True)
    class Named(Pruner):
        name: ClassVar[str] = "zoo"
        source: ClassVar[str] = "a test"

        def score(self, tokens):
            return torch.ones(len(tokens))

    @dataclass(frozen=True)
    class Empty(Pruner):
        name: ClassVar[str] = "empty"
        source: ClassVar[str] = "a test"

    class Plain(Named):
        name = "plain"

    with pytest.raises(ValueError, match="already"):
        register(Named)
    for wrong in (Empty, Plain, int):
        with pytest.raises(TypeError):
            register(wrong)
