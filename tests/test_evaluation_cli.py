"""`zooprune eval` and `zooprune calibrate` as a user meets them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

import zooprune.bundled
from test_cli import command, photo  # noqa: F401
from zooprune.evaluation.page import page, pareto_front
from zooprune.evaluation.report import digest, markdown

SMALL = ("--limit", "6", "--keep", "64", "--keep", "16", "--batch", "6", "--timed", "1", "--out", "run")


@pytest.fixture
def wide(monkeypatch, command):  # noqa: F811
    """Run the command line in a terminal of 100 columns."""
    from zooprune import cli

    def call(*arguments):
        code, out, err = command(*arguments)
        return code, out, err

    console = cli.Console
    monkeypatch.setattr(cli, "Console", lambda **options: console(**(options | {"width": 100})))
    return call


def test_a_run_from_end_to_end(wide, tmp_path):
    code, out, err = wide("eval", *SMALL, "--seed", "0", "--seed", "1")
    assert code == 0 and err == ""
    assert all(len(line) <= 100 for line in out.splitlines())
    for word in ("none", "zoo", "random", "score", "95 %", "accuracy", "total", "run/report.html"):
        assert word in out
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 6 * (1 + 2 + 4) and {row["model"] for row in rows} == {"bundled"}
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    assert description["configuration"]["data"] == "bundled" and "cpu" in description["environment"]

    text = (tmp_path / "run" / "report.md").read_text()
    assert "| zoo | 64 |" in text and "score kept" in text and "McNemar" in text
    html = (tmp_path / "run" / "report.html").read_text()
    assert html.count("plotly-graph-div") == 3 and "By task" in html
    visible = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    references = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import""", visible)
    assert all(address.startswith("data:image/jpeg;base64,") for pair in references for address in pair if address)
    assert not re.search(r"<script[^>]*\bsrc=|<link|<iframe", html[:2000] + visible)

    code, out, err = wide("eval", *SMALL, "--seed", "0", "--seed", "1", "--json")
    again = json.loads(out)
    assert code == 0 and set(again) == {"run", "models", "cases"}
    assert [arm["method"] for arm in again["models"]["bundled"]["summary"]] == [
        "none",
        "zoo",
        "zoo",
        "random",
        "random",
    ]
    assert len((tmp_path / "run" / "results.jsonl").read_text().splitlines()) == len(rows)

    code, _, err = wide("eval", *SMALL, "--seed", "3")
    assert code == 2 and "holds a run with another settings" in err and err.count("\n") == 1


def test_several_models_answer_the_same_questions(wide, tmp_path):
    shutil.copytree(Path(zooprune.bundled.__file__).parent / "model", tmp_path / "copy")
    options = ("--limit", "4", "--method", "zoo", "--keep", "64", "--timed", "1", "--out", "two")
    code, out, err = wide("eval", "--model", "bundled", "--model", "copy", *options)
    assert code == 0 and err == "" and "bundled on bundled" in out and "copy on bundled" in out
    rows = [json.loads(line) for line in (tmp_path / "two" / "results.jsonl").read_text().splitlines()]
    replies = {
        name: [(row["method"], row["id"], row["reply"]) for row in rows if row["model"] == name]
        for name in ("bundled", "copy")
    }
    assert len(rows) == 2 * 4 * 2 and replies["bundled"] == replies["copy"]
    html = (tmp_path / "two" / "report.html").read_text()
    assert html.count("plotly-graph-div") == 6


def test_own_questions_without_answers(wide, photo, tmp_path):  # noqa: F811
    (tmp_path / "pictures").mkdir()
    photo.rename(tmp_path / "pictures" / "photo.jpg")
    code, out, err = wide(
        "eval", "--data", "pictures", "--question", "what colour is the car?", "--method", "diversity", "--keep", "0.1",
        "--timed", "0", "--out", "own",
    )  # fmt: skip
    assert code == 0 and err == ""
    assert "same" in out and "accuracy" not in out
    assert "total ms" not in out


def test_calibrate_writes_a_plan_that_ask_and_eval_take(wide, photo, tmp_path):  # noqa: F811
    lines = [json.dumps({"image": "photo.jpg", "question": f"is there a {word}?"}) for word in ("car", "dog", "cat")]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    code, out, err = wide(
        "calibrate", "--data", "mine.jsonl", "--keep", "575", "--keep-quality", "0.3", "--out", "plan.json"
    )
    assert code == 0 and err == ""
    assert "plan.json: zoo with keep=575 keeps at least" in out
    assert json.loads((tmp_path / "plan.json").read_text())["certified"]["trials"] == 3
    code, out, err = wide("ask", "photo.jpg", "is there a dog?", "--plan", "plan.json", "--json")
    assert code == 0 and json.loads(out)["pruned"]["visual_tokens"] == 575
    code, out, err = wide("eval", "--plan", "plan.json", "--data", "mine.jsonl", "--timed", "0", "--json")
    summary = json.loads(out)["models"]["bundled"]["summary"]
    assert code == 0 and [(arm["method"], arm["keep"]) for arm in summary] == [("none", None), ("zoo", 575)]


BAD = {
    "method": (["eval", "--method", "zooo"], "did you mean 'zoo'"),
    "keep": (["eval", "--keep", "0"], "at least 1"),
    "task": (["eval", "--task", "counting"], "no task 'counting'"),
    "data": (["eval", "--data", "none.jsonl"], "does not exist"),
    "plan missing": (["eval", "--plan", "none.json"], "cannot be read"),
    "plan and method": (["eval", "--plan", "plan.json", "--method", "zoo"], "leave out --method"),
    "plan of another": (["ask", "--plan", "plan.json"], "was made for other; give --model other"),
    "out is a file": (["eval", "--limit", "1", "--out", "plan.json"], "plan.json is a file"),
    "too few": (["calibrate", "--data", "bundled", "--limit", "5"], "takes at least 299 questions"),
    "quality": (["calibrate", "--data", "bundled", "--limit", "5", "--keep-quality", "99"], "not between 0 and 1"),
    "out in nowhere": (["calibrate", "--data", "bundled", "--out", "no/plan.json"], "--out: the folder no does not"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_exit_code_two(command, tmp_path, kind):  # noqa: F811
    (tmp_path / "plan.json").write_text(json.dumps({"version": 1, "model": "other", "method": "zoo", "keep": 64}))
    arguments, message = BAD[kind]
    code, out, err = command(*arguments)
    assert code == 2 and out == ""
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "package, extra, arguments",
    [
        ("plotly.offline", "report", ["eval"]),
        ("scipy.special", "data", ["calibrate", "--data", "bundled"]),
        ("pyarrow.parquet", "data", ["eval", "--data", "mine.parquet"]),
    ],
)
def test_a_missing_package_is_named_before_anything_is_done(monkeypatch, command, tmp_path, package, extra, arguments):  # noqa: F811
    for name in ("page", "publish", "calibrate"):
        monkeypatch.delitem(sys.modules, f"zooprune.evaluation.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "mine.parquet").write_bytes(b"")
    code, out, err = command(*arguments)
    assert code == 2 and out == "" and f"pip install 'zooprune[{extra}]'" in err and err.count("\n") == 1


def test_the_pareto_front():
    points = [(3.0, 9.0), (1.0, 5.0), (2.0, 4.0), (2.0, 7.0), (4.0, 9.0)]
    assert pareto_front(points) == [(1.0, 5.0), (2.0, 7.0), (3.0, 9.0)]


def test_what_users_write_cannot_break_the_reports(tmp_path):
    name = "<script>alert(1)</script>|"
    rows = [
        {
            "model": name, "method": method, "keep": keep, "seed": None, "id": "1", "task": name, "reply": name,
            "answers": [name], "right": True, "visual_tokens": 576, "kept_tokens": 64, "prompt_tokens": 80, "flops": 1,
            "kv_bytes": 1, "seconds": {}, "evidence": None,
        }
        for method, keep in (("none", None), ("zoo", 64))
    ]  # fmt: skip
    Image.new("RGB", (4, 4)).save(tmp_path / "case.jpg")
    case = {"method": "zoo", "keep": 64, "task": name, "id": "1", "question": name, "answers": [name],
            "unpruned": name, "pruned": name, "pictures": ["case.jpg"]}  # fmt: skip
    described = {
        "configuration": {"model": [name], "data": name, "dtype": "auto", "device": "auto"},
        "environment": {"date": "d", "versions": {}, "commit": None, "python": "3", "gpu": None, "cpu": "c",
                        "threads": 1, "cores": 1},
    }  # fmt: skip
    found = digest(rows, resamples=10)
    html = page(described, found, {name: [case]}, tmp_path)
    assert "<script>alert" not in html
    assert "\\|" in markdown(described, found, {name: [case]})
