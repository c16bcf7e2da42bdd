"""docs/methods.md and the tables of all methods are what the registry and the newest figures say."""

from __future__ import annotations

import json

import pytest

import findings_tables
import methods_page
from zooprune import list_pruners
from zooprune.catalogue import describe


def test_the_page_is_up_to_date():
    assert methods_page.PAGE.read_text(encoding="utf-8") == methods_page.page(), "run: make methods-page"


def test_the_table_of_the_readme_is_up_to_date():
    assert methods_page.README.read_text(encoding="utf-8") == methods_page.readme(), "run: make methods-page"


def test_the_tables_of_the_findings_are_up_to_date():
    for path, tables in findings_tables.pages():
        assert path.read_text(encoding="utf-8") == findings_tables.filled(path, tables), "run: make methods-page"
        assert all("| zoo |" in table for table in tables.values())


def test_a_page_without_a_place_for_the_tables_is_refused(tmp_path):
    (tmp_path / "findings.md").write_text("# Findings\n")
    with pytest.raises(ValueError, match="lacks the line"):
        findings_tables.filled(tmp_path / "findings.md", {"discard": ""})


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


def test_times_are_read_from_the_newest_file_and_told_with_their_command(tmp_path, monkeypatch):
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    row = {"provider": "zoo", "tokens": 576, "keep": 64, "images": 1, "p50": 0.0568, "repeats": 3}
    row |= {"environment": {"threads": 1}}
    others = [row | {"tokens": 2880, "keep": 640, "p50": 1.2344}, row | {"images": 16, "p50": 0.761}]
    (results / "choosing-2025-12-31.json").write_text(json.dumps({"rows": [row | {"p50": 9}]}))
    (results / "choosing-2026-01-01.json").write_text(json.dumps({"rows": [row, *others]}))
    # Another measurement, whose name begins alike.
    (results / "choosing_share-2026-01-02.json").write_text(json.dumps({"rows": []}))
    monkeypatch.setattr(methods_page, "ROOT", tmp_path)
    told, times = methods_page.timed()
    assert times == {"zoo": {(576, 64, 1): 0.0568, (2880, 640, 1): 1.2344, (576, 64, 16): 0.761}}
    assert "choose 64 of 576 tokens once" in told and "`benchmarks/results/choosing-2026-01-01.json`" in told
    assert "`OMP_NUM_THREADS=1 .venv/bin/python benchmarks/choosing.py --repeats 3`" in told
    *_, sentence = methods_page.section(describe("zoo"), {}, times["zoo"])
    assert sentence == (
        "Median time of choosing: 56.8 ms for 64 of 576 tokens; 1,234 ms for 640 of 2,880 tokens; "
        "761 ms for 64 of 576 tokens in each of 16 images."
    )
    zoo = next(line for line in methods_page.table((describe("zoo"),), {}, times) if line.startswith("| [zoo]"))
    assert zoo.endswith("|  |  | 56.8 |")


def test_a_section_shows_the_formula_as_it_is():
    lines = list(methods_page.section(describe("scope"), {}, {}))
    start = lines.index("```text")
    assert lines[start + 1] == "next = argmax_i g_i · a_i^power" and "```" in lines[start + 2 :]


def test_marks_of_markdown_are_escaped_outside_of_code():
    assert methods_page.as_it_is("a * b < `c * d`") == r"a \* b &lt; `c * d`"
