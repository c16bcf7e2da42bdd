"""The paper's tables as recipes: the figures on file, the commands, and the comparison with a run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import check
import recipe
import run
from zooprune import get_pruner, list_pruners

NAMES = recipe.known_recipes()


def test_every_table_of_the_paper_has_a_recipe():
    assert NAMES == ["ablation-llava-next-7b", "llava-1.5-13b", "llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b"]


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_its_column_and_every_row_its_own_name(name):
    table = recipe.load_recipe(name)
    assert table.rows[0].name == "none"
    assert len({row.name for row in table.rows}) == len(table.rows)
    figures = [column for row in table.rows for values in row.figures.values() for column in values]
    assert set(figures) == set(table.benchmarks)


#: The averages that the paper prints, to check the cells by.
AVERAGES = {
    "llava-1.5-7b": {
        "zoo-192": 98.27, "zoo-128": 97.62, "zoo-64": 95.20, "divprune-192": 97.78, "divprune-128": 96.73,
        "divprune-64": 94.42, "visionzip-192": 97.66, "visionzip-128": 96.20, "visionzip-64": 92.74, "tome-192": 88.49,
        "tome-128": 80.38, "tome-64": 70.12, "fastv-192": 87.75, "fastv-128": 81.22, "fastv-64": 71.10,
        "hired-192": 93.84, "hired-128": 91.84, "hired-64": 87.95, "pyramiddrop-192": 95.95, "pyramiddrop-128": 93.52,
        "pyramiddrop-64": 72.66, "sparsevlm-192": 95.93, "sparsevlm-128": 93.27, "sparsevlm-64": 86.52,
    },
    "llava-next-7b": {
        "zoo-640": 98.3, "zoo-320": 97.1, "zoo-160": 95.4, "divprune-640": 97.1, "divprune-320": 95.1,
        "divprune-160": 92.4, "visionzip-640": 97.5, "visionzip-320": 94.5, "visionzip-160": 90.4,
    },
    "ablation-llava-next-7b": {
        "sensitivity-640": 96.7, "sensitivity-320": 92.9, "sensitivity-160": 91.2, "diversity-640": 97.1,
        "diversity-320": 95.1, "diversity-160": 92.4, "zoo-640-sum": 98.1, "zoo-320-sum": 96.4, "zoo-160-sum": 93.8,
        "zoo-640": 98.3, "zoo-320": 97.1, "zoo-160": 95.4,
    },
    "qwen2.5-vl-7b": {
        "zoo-0.2": 96.2, "zoo-0.1": 90.8, "divprune-0.2": 96.0, "divprune-0.1": 90.5, "visionzip-0.2": 95.6,
        "visionzip-0.1": 88.7,
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "row", "printed"), [(n, r, a) for n in AVERAGES for r, a in AVERAGES[n].items()])
def test_cells_give_the_averages_that_the_paper_prints(name, row, printed):
    table = recipe.load_recipe(name)
    values = {entry.name: entry.figures["paper"] for entry in table.rows if "paper" in entry.figures}
    average = check.mean_ratio(values[row], values["none"], list(values[row]))
    assert average == pytest.approx(printed, abs=0.15)


def commands(monkeypatch, capsys, name, *arguments):
    monkeypatch.setattr(sys, "argv", ["run.py", name, "--print", *arguments])
    assert run.main() == 0
    printed = capsys.readouterr()
    return [line.split() for line in printed.out.splitlines()], printed.err


def option(command, name):
    return command[command.index(name) + 1]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_that_can_be_run_gets_a_command(monkeypatch, capsys, name):
    table = recipe.load_recipe(name)
    lines, err = commands(monkeypatch, capsys, name, "--set", "pretrained=bundled")
    runnable = [row for row in table.rows if row.arguments["method"] in ("none", *list_pruners())]
    assert len(lines) == len(runnable) >= 3
    assert all(row.name in err for row in table.rows if row not in runnable)
    for line, row in zip(lines, runnable, strict=True):
        assert line[1:5] == ["-m", "lmms_eval", "--model", "zooprune"]
        arguments = dict(pair.split("=") for pair in option(line, "--model_args").split(","))
        assert arguments["pretrained"] == "bundled" and arguments["method"] == row.arguments["method"]
        if row.arguments["method"] != "none":
            options = {key: row.arguments[key] for key in row.arguments if key != "method"}
            assert {key: str(value) for key, value in options.items()}.items() <= arguments.items()
            assert get_pruner(row.arguments["method"], **options).keep == row.arguments["keep"]
        if "system_prompt" in arguments:
            assert Path(arguments["system_prompt"]).read_text().startswith("A chat between a curious user")
        assert set(option(line, "--tasks").split(",")) == {column.task for column in table.benchmarks.values()}


def test_arguments_of_a_command_can_be_changed(monkeypatch, capsys):
    options = ["--only", "zoo", "--set", "system_prompt=", "--set", "estimator=finite_difference", "--tasks", "mine"]
    options += ["--limit", "5", "--processes", "4", "--batch-size", "2", "--include-path", "here"]
    lines, err = commands(monkeypatch, capsys, "llava-1.5-7b", *options)
    assert err == ""
    assert [option(line, "--model_args").split("method=")[1] for line in lines] == [
        f"zoo,keep={keep},estimator=finite_difference" for keep in (192, 128, 64, 32)
    ]
    first = lines[0]
    assert first[1:7] == ["-m", "accelerate.commands.launch", "--num_processes", "4", "-m", "lmms_eval"]
    assert "system_prompt" not in " ".join(first)
    values = [option(first, name) for name in ("--tasks", "--limit", "--batch_size", "--include_path")]
    assert values == ["mine", "5", "2", "here"]


@pytest.mark.parametrize(
    ("arguments", "message"), [(["llava"], "there is no recipe llava"), (["llava-1.5-7b", "--set", "a"], "NAME=VALUE")]
)
def test_bad_arguments_end_with_code_2(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        run.main()
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.fixture
def lmms_eval(monkeypatch, tmp_path):
    """Stand in for lmms-eval in an empty folder, and return the commands it was given."""
    started = []

    def evaluate(line, check):
        started.append(line)
        limit = int(option(line, "--limit")) if "--limit" in line else None
        config = {"model": "zooprune", "limit": limit, "model_args": option(line, "--model_args")}
        scores = {"exact_match,none": 0.1 if limit else 0.62}
        folder = Path(option(line, "--output_path")) / "model"
        folder.mkdir(parents=True, exist_ok=True)
        results = {task: scores for task in option(line, "--tasks").split(",")}
        (folder / f"{len(started)}_results.json").write_text(json.dumps({"config": config, "results": results}))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run.subprocess, "run", evaluate)
    return started


def run_recipe(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", ["run.py", name, *arguments])
    return run.main()


def test_a_row_without_results_is_an_error(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run.subprocess, "run", lambda line, check: None)
    assert run_recipe(monkeypatch, "llava-1.5-7b", "--only", "none", "--out", str(tmp_path)) == 1
    assert "none gave no results" in capsys.readouterr().err


def test_a_failure_after_a_trial_is_an_error(monkeypatch, lmms_eval):
    assert run_recipe(monkeypatch, "llava-1.5-7b", "--only", "none", "--limit", "10") == 0
    monkeypatch.setattr(run.subprocess, "run", lambda line, check: None)
    assert run_recipe(monkeypatch, "llava-1.5-7b", "--only", "none") == 1


def test_a_row_with_results_is_not_run_again(monkeypatch, lmms_eval):
    for _ in range(2):
        assert run_recipe(monkeypatch, "llava-1.5-7b", "--only", "none") == 0
    assert len(lmms_eval) == 1


@pytest.mark.parametrize("other", [["--limit", "10"], ["--tasks", "gqa"], ["--set", "dtype=float32"]])
def test_a_row_of_which_something_else_was_asked_is_run(monkeypatch, lmms_eval, other):
    assert run_recipe(monkeypatch, "llava-1.5-7b", "--only", "none", *other) == 0
    assert run_recipe(monkeypatch, "llava-1.5-7b", "--only", "none") == 0
    assert len(lmms_eval) == 2


@pytest.mark.parametrize("name", NAMES)
def test_the_results_lie_where_the_check_looks(monkeypatch, capsys, lmms_eval, name):
    for other in NAMES:
        assert run_recipe(monkeypatch, other, "--only", "none") == 0
    assert len(lmms_eval) == len(NAMES)
    _, printed = checked(monkeypatch, capsys, f"runs/{name}")
    assert recipe.load_recipe(name).title in printed and "none GQA 62.00" in printed


@pytest.mark.parametrize("order", [([], ["--limit", "10"]), (["--limit", "10"], [])])
def test_a_trial_does_not_hide_the_whole_run(monkeypatch, capsys, lmms_eval, order):
    for arguments in order:
        assert run_recipe(monkeypatch, "llava-1.5-7b", "--only", "none", *arguments) == 0
    assert "none GQA 62.00" in checked(monkeypatch, capsys, "runs/llava-1.5-7b")[1]


PRETRAINED = "Qwen/Qwen2.5-VL-7B-Instruct"
#: Table 2's row at 20 %, as lmms-eval would write it.
ZOO = {
    "gqa": {"exact_match,none": 0.5881, "exact_match_stderr,none": 0.004, "alias": "gqa"},
    "mmbench_en_dev_static": {"gpt_eval_score,none": 80.60, "submission,none": None},
    "mme": {"mme_perception_score,none": 1601.0, "mme_cognition_score,none": 600.0},
    "pope": {"pope_f1_score,none": 0.8417},
}
NONE = {
    "gqa": {"exact_match,none": 0.6084},
    "mmbench_en_dev_static": {"gpt_eval_score,none": 84.10},
    "mme": {"mme_perception_score,none": 1700.0, "mme_cognition_score,none": 610.0},
    "pope": {"pope_f1_score,none": 0.863},
}


def write(folder, name, arguments, results, **config):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model": "zooprune", "limit": None, "model_args": f"pretrained={PRETRAINED},{arguments}"} | config
    (folder / f"{name}_results.json").write_text(json.dumps({"config": config, "results": results}))


def checked(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["check.py", *map(str, arguments)])
    code, printed = check.main(), capsys.readouterr()
    return code, re.sub(" +", " ", printed.out) + printed.err


def test_a_run_that_agrees(monkeypatch, capsys, tmp_path):
    write(tmp_path / "zoo", "1", "dtype=bfloat16,method=zoo,keep=0.2", ZOO)
    write(tmp_path / "none", "2", "dtype=bfloat16,method=none", NONE)
    code, printed = checked(monkeypatch, capsys, tmp_path)
    assert code == 0
    assert "zoo-0.2 GQA 58.81 58.81 (+0.00)" in printed
    assert "zoo-0.2 MME 2201.00 2201.00 (+0.00)" in printed
    assert "zoo-0.2: keeps 96.33 % over 4 columns, paper 96.33 %" in printed
    assert "zoo-0.1: not run" in printed
    assert "0 off, 8 not off, 5 missing" in printed


@pytest.mark.parametrize(("away", "code"), [(1.9, 0), (-1.9, 0), (2.1, 1), (-2.1, 1)])
def test_a_cell_is_off_beyond_its_tolerance(monkeypatch, capsys, tmp_path, away, code):
    results = ZOO | {"gqa": {"exact_match,none": 0.5881 + away / 100}}
    write(tmp_path, "1", "method=zoo,keep=0.2", results)
    got, printed = checked(monkeypatch, capsys, tmp_path / "1_results.json")
    assert got == code
    assert ("off by more than 2" in printed) == bool(code) and f"({away:+.2f})" in printed


def test_a_cell_may_agree_with_either_source(monkeypatch, capsys, tmp_path):
    # Paper: 87.13; independent: 86.8.
    for away, code in ((-2.2, 0), (-2.5, 1)):
        results = {"pope": {"pope_f1_score,none": (87.13 + away) / 100}}
        pretrained = "pretrained=llava-hf/llava-1.5-7b-hf,method=zoo,keep=128"
        write(tmp_path, "1", "", results, model_args=pretrained)
        assert checked(monkeypatch, capsys, tmp_path)[0] == code


def test_what_is_missing_is_said(monkeypatch, capsys, tmp_path):
    pretrained = "pretrained=llava-hf/llava-1.5-7b-hf,method=zoo,keep=64"
    results = {"mme": {"mme_perception_score,none": 1375.0}, "vqav2_test": {"submission,none": None}}
    write(tmp_path, "1", "", results, model_args=pretrained)
    code, printed = checked(monkeypatch, capsys, tmp_path)
    assert code == 0
    for line in ("zoo-64, GQA: not in the results", "zoo-64, MME: not in the results",
                 "zoo-64, VQAv2: scored by the benchmark's own server", "tome-64: not run"):  # fmt: skip
        assert line in printed
    assert "zoo-64 MME-P 1375.00" in printed


def test_the_newest_of_two_runs_counts_task_by_task(tmp_path):
    write(tmp_path, "1", "method=zoo,keep=0.2", ZOO)
    write(tmp_path, "2", "method=zoo,keep=0.2", {"gqa": {"exact_match,none": 0.5}})
    scores = check.read_runs(tmp_path)[PRETRAINED]["zoo-0.2"]
    assert scores["gqa"]["exact_match"] == 0.5 and scores["pope"]["pope_f1_score"] == 0.8417


def test_sum_and_product_are_different_rows_and_both_tables_of_a_model_are_shown(monkeypatch, capsys, tmp_path):
    base = "pretrained=llava-hf/llava-v1.6-vicuna-7b-hf,scope=tile,method=zoo,keep=160"
    write(tmp_path, "1", "", {"gqa": {"exact_match,none": 0.5948}}, model_args=f"{base},fusion=sum")
    write(tmp_path, "2", "", {"gqa": {"exact_match,none": 0.5993}}, model_args=base)
    code, printed = checked(monkeypatch, capsys, tmp_path)
    assert code == 0 and "table 3" in printed and "table 4" in printed
    assert "zoo-160-sum GQA 59.48 59.48 (+0.00)" in printed
    assert "zoo-160 GQA 59.93 59.93 (+0.00)" in printed


def test_part_of_a_task_is_pointed_out(monkeypatch, capsys, tmp_path):
    write(tmp_path, "1", "method=zoo,keep=0.2", ZOO, limit=10)
    assert "run with --limit 10" in checked(monkeypatch, capsys, tmp_path)[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": "llava_hf"}, "a run of --model llava_hf"),
        ({"model_args": "pretrained=bundled,method=none"}, "there is no table for bundled"),
        (None, "there is no *_results.json in"),
    ],
)
def test_what_cannot_be_compared_ends_with_code_2(monkeypatch, capsys, tmp_path, config, message):
    if config:
        write(tmp_path, "1", "method=zoo,keep=0.2", ZOO, **config)
    code, printed = checked(monkeypatch, capsys, tmp_path)
    assert code == 2 and message in printed
