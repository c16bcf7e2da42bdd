"""What is derived of a method from its class and its docstring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from zooprune import list_pruners
from zooprune.catalogue import catalogue, describe
from zooprune.families import FAMILIES
from zooprune.pruners import Pruner, register, registry


@pytest.mark.parametrize("name", list_pruners())
def test_every_method_is_described(name):
    entry = describe(name)
    assert entry.idea and entry.idea[0].endswith(".") and "Parameters" not in "".join(entry.idea)
    assert entry.source and entry.families and entry.count
    assert all(option.kind and option.meaning for option in entry.options)


@pytest.mark.parametrize("name", sorted({*list_pruners()} - {"none", "random"}))
def test_every_method_has_a_formula_and_explains_its_symbols(name):
    text = describe(name).formula or ""
    formula, _, symbols = text.partition("\n\n")
    assert formula and symbols
    # So wide is a terminal.
    assert not text.startswith(" ") and all(len(line) <= 80 for line in text.splitlines())


def test_paper_and_options_come_from_the_docstring():
    entry = describe("visionzip")
    assert entry.title == "VisionZip: Longer is Better but Not Necessary in Vision Language Models"
    assert (entry.arxiv, entry.year) == ("2412.04467", 2024)
    assert entry.merges and not entry.query_aware and entry.reads == ("attention", "keys")
    assert [(option.name, option.default, option.kind) for option in entry.options] == [
        ("keep", 64, "int or float"),
        ("contextual", 10 / 64, "float"),
    ]
    assert entry.options[-1].meaning.endswith("10 of 64, as published.")


def test_the_formula_comes_from_the_notes_and_is_no_part_of_the_idea():
    entry = describe("fastv")
    assert entry.formula.splitlines()[:2] == ["score_i = mean_h A_h(last, i)", ""]
    assert describe("sensitivity").formula.startswith("score_i = mean_u ‖M(x_i + h u) − M(x_i − h u)‖ / 2h")
    assert "score_i" not in " ".join((*entry.idea, entry.source))


def test_options_that_a_parent_describes():
    options = {option.name: option for option in describe("sensitivity").options}
    assert options["directions"].meaning.startswith("Unit directions")
    # Several parameters of one description.
    assert options["centred"].meaning == options["distinctive"].meaning


def test_counts_and_seeds_depend_on_options_and_models():
    assert describe("zoo").count == "exact" and describe("prumerge").count == "exact or native"
    assert describe("diversity").seed == "" and describe("random").seed == "yes" and describe("zoo").seed == "sampled"


def test_families_are_those_that_give_what_is_read():
    assert describe("zoo").hosts == "all" and len(describe("zoo").families) == len(FAMILIES)
    silent = {family.title for family in FAMILIES if not family.gives_tower_signals}
    assert silent and set(describe("zoo").families) - set(describe("tome").families) == silent


def test_families_are_those_whose_language_models_can_be_pruned_inside():
    closed = {family.title for family in FAMILIES if not family.thins}
    assert closed == {"LFM2-VL", "LFM3-VL", "GLM-5 Next"}
    for name in list_pruners("inside the language model"):
        assert set(describe("zoo").families) - set(describe(name).families) == closed


def test_a_method_of_which_little_is_said(monkeypatch):
    monkeypatch.setattr(registry, "_known", dict(registry._known))

    @register
    @dataclass(frozen=True)
    class Last(Pruner):
        """Keep the last tokens."""

        name: ClassVar[str] = "last"
        source: ClassVar[str] = "a test"
        exact: ClassVar[bool] = False
        modalities: ClassVar = ("video",)

        def score(self, tokens):
            return torch.arange(len(tokens)).float()

    entry = describe("last")
    assert entry in catalogue()
    assert (entry.idea, entry.formula, entry.source, entry.title, entry.arxiv, entry.year) == (
        ("Keep the last tokens.",), None, "a test.", None, None, None,
    )  # fmt: skip
    assert entry.count == "native"
    assert set(entry.families) == {family.title for family in FAMILIES if family.video_arguments}
