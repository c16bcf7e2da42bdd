"""docs/methods.md and the tables of all methods are what the registry and the newest figures say."""

from __future__ import annotations

import json

import pytest

import findings_tables
import methods_page
from zooprune import list_pruners


def test_the_page_is_up_to_date():
    assert methods_page.PAGE.read_text(encoding="utf-8") == methods_page.page(), "run: make methods-page"


def test_the_table_of_the_readme_is_up_to_date():
    assert methods_page.README.read_text(encoding="utf-8") == methods_page.readme(), "run: make methods-page"


def test_the_tables_of_the_findings_are_up_to_date():
    page = findings_tables.page()
    assert findings_tables.PAGE.read_text(encoding="utf-8") == page, "run: make methods-page"
    assert page.count("| zoo |") >= 2


def test_a_page_without_a_place_for_the_tables_is_refused(tmp_path, monkeypatch):
    (tmp_path / "findings.md").write_text("# Findings\n")
    monkeypatch.setattr(findings_tables, "PAGE", tmp_path / "findings.md")
    with pytest.raises(ValueError, match="lacks the line"):
        findings_tables.page()


def test_every_method_has_a_row_and_a_section():
    lines = methods_page.page().splitlines()
    for name in list_pruners():
        assert sum(line.startswith(f"| [{name}](#{name}) |") for line in lines) == 1
        assert lines.count(f"## {name}") == 1


def test_figures_are_read_from_the_newest_file_and_averaged_over_seeds(tmp_path, monkeypatch):
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    row = {"method": "random", "dropped": "discard", "keep": 64, "accuracy": {"all": 0.5}}
    others = [row | {"accuracy": {"all": 0.7}}, row | {"keep": 16, "accuracy": {"all": 0.1}}]
    (results / "methods-2025-12-31.json").write_text(json.dumps({"rows": [row]}))
    monkeypatch.setattr(methods_page, "ROOT", tmp_path)
    assert methods_page.measured()[1] == {("random", "discard", 64): 50.0}
    (results / "methods-2026-01-01.json").write_text(json.dumps({"rows": [row, *others]}))
    assert methods_page.measured()[1] == {("random", "discard", 64): 60.0, ("random", "discard", 16): 10.0}


def test_marks_of_markdown_are_escaped_outside_of_code():
    assert methods_page.as_it_is("a * b < `c * d`") == r"a \* b &lt; `c * d`"
