"""`zooprune eval`, `zooprune calibrate` and `zooprune tune` as a user meets them."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from html import escape
from math import inf
from pathlib import Path
from types import SimpleNamespace

import pytest
from markdown_it import MarkdownIt
from PIL import Image

import zooprune.bundled
import zooprune.data.examples
import zooprune.families
import zooprune.loading
from test_cli import command, photo  # noqa: F401
from test_evaluation_runner import make_examples, make_subject
from zooprune.evaluation import page as page_module
from zooprune.evaluation import publish
from zooprune.evaluation.cases import Case
from zooprune.evaluation.charts import Guide, Point, Series, chart
from zooprune.evaluation.page import page, pareto_front
from zooprune.evaluation.publish import _slug
from zooprune.evaluation.report import digest, headline, markdown
from zooprune.evaluation.runner import Results, Setting
from zooprune.picture import CannotDrawError

SMALL = ("--limit", "6", "--keep", "64", "--keep", "16", "--batch", "6", "--timed", "1", "--out", "run")


def test_a_run_from_end_to_end(command, tmp_path):  # noqa: F811
    code, out, err = command("eval", *SMALL, "--seed", "0", "--seed", "1")
    assert code == 0 and err == ""
    assert all(len(line) <= 80 for line in out.splitlines())
    for word in ("none", "zoo", "random", "score", "There is no interval", "accuracy", "total", "speed-up",
                 "visual tokens per question", "run/report.html"):  # fmt: skip
        assert word in out
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 6 * (1 + 2 + 4) and {row["model"] for row in rows} == {"bundled"}
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    assert description["configuration"]["data"] == "bundled" and "cpu" in description["environment"]

    text = (tmp_path / "run" / "report.md").read_text()
    assert "| zoo | 64 |" in text and "score kept" in text and "McNemar" in text
    html = (tmp_path / "run" / "report.html").read_text()
    assert html.count("<figure class=chart>") == 2 and "By task" in html and "speed-up" in html
    references = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import""", html)
    assert all(address.startswith("data:image/webp;base64,") for pair in references for address in pair if address)
    assert not re.search("<script|<link|<iframe", html) and len(html) < 1_500_000
    assert "name=viewport" in html and html.count(">all tokens</li>") == 2 and "class=headline" in html

    code, out, err = command("eval", *SMALL, "--seed", "0", "--seed", "1", "--json")
    again = json.loads(out)
    assert code == 0 and set(again) == {"run", "models", "cases", "left_out"}
    assert [arm["method"] for arm in again["models"]["bundled"]["summary"]] == [
        "none",
        "zoo",
        "zoo",
        "random",
        "random",
    ]
    assert len((tmp_path / "run" / "results.jsonl").read_text().splitlines()) == len(rows)

    code, _, err = command("eval", *SMALL, "--seed", "3")
    assert code == 2 and "holds a run with other settings" in err and err.count("\n") == 1


def test_several_models_answer_the_same_questions(command, tmp_path):  # noqa: F811
    shutil.copytree(Path(zooprune.bundled.__file__).parent / "model", tmp_path / "copy")
    options = ("--limit", "4", "--method", "zoo", "--keep", "64", "--timed", "1", "--out", "two")
    code, out, err = command("eval", "--model", "bundled", "--model", "copy", *options)
    assert code == 0 and err == "" and "bundled on bundled" in out and "copy on bundled" in out
    rows = [json.loads(line) for line in (tmp_path / "two" / "results.jsonl").read_text().splitlines()]
    replies = {
        name: [(row["method"], row["id"], row["reply"]) for row in rows if row["model"] == name]
        for name in ("bundled", "copy")
    }
    assert len(rows) == 2 * 4 * 2 and replies["bundled"] == replies["copy"]
    html = (tmp_path / "two" / "report.html").read_text()
    assert html.count("<figure class=chart>") == 4


def test_own_questions_without_answers(command, photo, tmp_path):  # noqa: F811
    (tmp_path / "pictures").mkdir()
    photo.rename(tmp_path / "pictures" / "photo.jpg")
    code, out, err = command(
        "eval", "--data", "pictures", "--question", "what colour is the car?", "--method", "diversity", "--keep", "0.1",
        "--timed", "0", "--out", "own",
    )  # fmt: skip
    assert code == 0 and err == ""
    assert "same reply %" in out and "total ms" not in out
    for text in (out, (tmp_path / "own" / "report.md").read_text(), (tmp_path / "own" / "report.html").read_text()):
        assert "same reply to" in text and "agreement" not in text
        assert not re.search("score kept|accuracy|[Rr]ight with|F1", text)


def test_calibrate_writes_a_plan_that_ask_and_eval_take(command, photo, tmp_path):  # noqa: F811
    rows = [
        {"image": "photo.jpg", "question": f"is there a {word}?", "cluster": word} for word in ("car", "dog", "cat")
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, err = command(
        "calibrate", "--data", "mine.jsonl", "--keep", "575", "--keep-quality", "0.3", "--out", "plans/plan.json"
    )
    assert code == 0 and err == ""
    (tmp_path / "plans" / "plan.json").rename(tmp_path / "plan.json")
    assert "plans/plan.json: zoo with keep=575 keeps at least" in out
    assert json.loads((tmp_path / "plan.json").read_text())["certified"]["trials"] == 3
    code, out, err = command("ask", "photo.jpg", "is there a dog?", "--plan", "plan.json", "--json")
    assert code == 0 and json.loads(out)["pruned"]["visual_tokens"] == 575
    code, out, err = command("eval", "--plan", "plan.json", "--data", "mine.jsonl", "--timed", "0", "--json")
    summary = json.loads(out)["models"]["bundled"]["summary"]
    assert code == 0 and [(arm["method"], arm["keep"]) for arm in summary] == [("none", None), ("zoo", 575)]


def test_eval_compares_what_becomes_of_dropped_tokens(command, photo, tmp_path):  # noqa: F811
    rows = [{"image": "photo.jpg", "question": "is there a car?", "answers": ["yes"]}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = command(
        "eval", "--data", "mine.jsonl", "--method", "zoo", "--keep", "64", "--timed", "0", "--dropped", "discard",
        "--dropped", "stand in", "--positions", "auto", "--positions", "original", "--scope", "prompt",
        "--newlines", "rows", "--json",
    )  # fmt: skip
    assert code == 0
    arms = [arm["method"] for arm in json.loads(out)["models"]["bundled"]["summary"]]
    rest = "scope=prompt, newlines=rows"
    assert sorted(arms) == sorted(
        ["none", f"zoo({rest})", f"zoo({rest}, dropped=stand in)", f"zoo(positions=original, {rest})",
         f"zoo(positions=original, {rest}, dropped=stand in)"]
    )  # fmt: skip


def test_a_calibrated_plan_has_the_policy_it_was_certified_with(command, photo, tmp_path):  # noqa: F811
    rows = [{"image": "photo.jpg", "question": f"is there a {word}?", "cluster": word} for word in ("car", "dog")]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("--keep", "575", "--keep-quality", "0.2", "--dropped", "stand in", "--out", "plan.json")
    assert command("calibrate", "--data", "mine.jsonl", "--positions", "original", *arguments)[0] == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["dropped"], plan["positions"]) == ("stand in", "original")
    code, out, _ = command("ask", "photo.jpg", "is there a dog?", "--plan", "plan.json", "--json")
    told = json.loads(out)
    assert code == 0 and (told["dropped"], told["positions"]) == ("stand in", "original")


TUNE = ("tune", "--method", "vflowopt", "--keep", "64", "--limit", "3", "--trials", "2")


def test_tune_writes_a_plan_that_ask_and_eval_take(command, photo, tmp_path):  # noqa: F811
    code, out, err = command(*TUNE)
    assert code == 0 and err == ""
    assert "published" in out and "plan.json: the best of 2 trials on 3 questions" in out
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["method"] == "vflowopt" and set(plan["options"]) == {"threshold", "cell"}
    code, out, err = command("ask", "photo.jpg", "is there a dog?", "--plan", "plan.json", "--json")
    assert code == 0 and json.loads(out)["pruned"]["visual_tokens"] == 64
    code, out, err = command("eval", "--plan", "plan.json", "--limit", "2", "--timed", "0", "--json")
    assert code == 0 and len(json.loads(out)["models"]["bundled"]["summary"]) == 2
    code, out, err = command(*TUNE, "--json", "--out", "other.json")
    told = json.loads(out)
    assert code == 0 and told["plan"]["options"] == plan["options"] and len(told["trials"]) == 2
    assert (tmp_path / "other.json").read_text() == (tmp_path / "plan.json").read_text()


def test_tuning_that_is_broken_off_leaves_an_older_plan_alone(command, tmp_path, monkeypatch):  # noqa: F811
    from zooprune.evaluation import tuning

    def broken_off(*_):
        raise KeyboardInterrupt

    (tmp_path / "plan.json").write_text("older")
    monkeypatch.setattr(tuning, "_last_state", broken_off)
    code, out, _ = command(*TUNE)
    assert code != 0 and out == ""
    assert [path.name for path in tmp_path.glob("*plan*")] == ["plan.json"]
    assert (tmp_path / "plan.json").read_text() == "older"


BAD = {
    "dropped": (["eval", "--dropped", "forget"], "dropped='forget' is not one of discard, mean, mass, stand in"),
    "plan and dropped": (["ask", "--plan", "plan.json", "--dropped", "mean"], "leave out --method"),
    "plan and positions": (["ask", "--plan", "plan.json", "--positions", "original"], "leave out --method"),
    "positions": (["ask", "--positions", "new"], "positions='new' is not one of auto, contiguous, original"),
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
    "nothing to tune": (["tune", "--method", "zoo", "--keep", "9", "--limit", "1"], "zoo has no options that depend"),
    "tune in a file": ([*TUNE, "--out", "plan.json/plan.json"], "plan.json is a file; choose another folder"),
    "an address": (["eval", "--data", "https://example.org/mine.jsonl"], "is an address on the web"),
}


#: Refused with neither a model nor a question loaded.
EARLY = {
    "dtype": (["eval", "--dtype", "float8"], "choose one of auto"),
    "device": (["eval", "--device", "toaster"], "use auto, cpu or cuda"),
    "dtype of calibrate": (["calibrate", "--data", "bundled", "--dtype", "float8"], "choose one of auto"),
    "quality of calibrate": (["calibrate", "--data", "bundled", "--keep-quality", "99"], "not between 0 and 1"),
    "method of calibrate": (["calibrate", "--data", "bundled", "--method", "zooo"], "did you mean 'zoo'"),
    "budgets of calibrate": (["calibrate", "--data", "bundled", "--keep", "9", "--keep", "0.5"], "all shares"),
    "positions of calibrate": (
        ["calibrate", "--data", "bundled", "--positions", "lost"],
        "positions='lost' is not one",
    ),
    "method of tune": (["tune", "--method", "zoo", "--keep", "9"], "zoo has no options that depend"),
    "device of tune": (["tune", "--method", "vflowopt", "--keep", "9", "--device", "toaster"], "use auto"),
}


@pytest.mark.parametrize("kind", EARLY)
def test_options_are_checked_before_anything_is_loaded(command, monkeypatch, tmp_path, kind):  # noqa: F811
    for name in ("load_model", "load_skeleton"):
        monkeypatch.setattr(zooprune.loading, name, lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(zooprune.data.examples, "load_examples", lambda *_, **__: pytest.fail("questions were loaded"))
    arguments, message = EARLY[kind]
    code, out, err = command(*arguments)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


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
        ("scipy.special", "calibrate", ["calibrate", "--data", "bundled"]),
        ("optuna", "tune", ["tune", "--method", "vflowopt", "--keep", "9"]),
        ("pyarrow.parquet", "data", ["eval", "--data", "mine.parquet"]),
    ],
)
def test_a_missing_package_is_named_before_anything_is_done(monkeypatch, command, tmp_path, package, extra, arguments):  # noqa: F811
    for name in ("calibrate", "tuning"):
        monkeypatch.delitem(sys.modules, f"zooprune.evaluation.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "mine.parquet").write_bytes(b"")
    code, out, err = command(*arguments)
    assert code == 2 and out == "" and f"pip install 'zooprune[{extra}]'" in err and err.count("\n") == 1


def test_the_pareto_front():
    points = [(3.0, 9.0), (1.0, 5.0), (2.0, 4.0), (2.0, 7.0), (4.0, 9.0)]
    assert pareto_front(points) == [(1.0, 5.0), (2.0, 7.0), (3.0, 9.0)]


def test_what_users_write_cannot_break_the_reports(tmp_path):
    name = "<script>alert(1)</script>| ![x](http://e.x/a.png) [y](http://e.x) **b** `c` $d$ &lt;\n# heading"
    rows = [
        {
            "model": name, "method": method, "keep": keep, "seed": None, "id": "1", "task": name, "reply": name,
            "answers": [name], "right": True, "visual_tokens": 576, "kept_tokens": 64, "prompt_tokens": 80, "flops": 1,
            "kv_bytes": 1, "seconds": {}, "evidence": None, "scenes": [], "question": name, "images": [name],
        }
        for method, keep in (("none", None), ("zoo", 64))
    ]  # fmt: skip
    Image.new("RGB", (4, 4)).save(tmp_path / "case.webp")
    case = {"method": "zoo", "keep": 64, "task": name, "id": "1", "question": name, "answers": [name],
            "unpruned": name, "pruned": name, "pictures": ["case.webp"]}  # fmt: skip
    described = {
        "configuration": {"model": [name], "data": name, "dtype": "auto", "device": "auto"},
        "environment": {"date": "d", "versions": {}, "commit": None, "python": "3", "gpu": None, "cpu": "c",
                        "threads": 1, "cores": 1},
    }  # fmt: skip
    found = digest(rows)
    left_out = {name: {name: name}}
    html = page(described, found, {name: [case]}, left_out, tmp_path)
    assert "<script>alert" not in html
    text = markdown(described, found, {name: [case]}, left_out)
    rendered = MarkdownIt("js-default").enable("table").render(text)
    assert "<script" not in rendered and 'e.x/a.png"' not in rendered and "<strong>" not in rendered
    assert "<code>" not in rendered and re.findall(r"<a\b", rendered) == []
    assert re.findall('<img src="(.*?)"', rendered) == ["case.webp"]
    # Every row has the cells of its header, and the name is there as it is.
    assert len({row.count("<t") for row in re.findall("<tr>.*?</tr>", rendered, re.DOTALL)}) <= 3
    assert escape(" ".join(name.split()), quote=False) in rendered.replace("&quot;", '"')
    assert not re.search("^# heading", text, re.MULTILINE)


def test_models_of_like_names_have_pictures_of_their_own():
    names = ["runs/a-b", "runs/a/b", "runs-a-b", "a" * 300, "a" * 301, "Runs/a-b", "é", "è"]
    slugs = {_slug(name) for name in names}
    assert len(slugs) == len(names) and all(re.fullmatch("[A-Za-z0-9-]{9,60}", slug) for slug in slugs)


def test_only_what_cannot_be_drawn_goes_without_a_picture(monkeypatch, tmp_path):
    case = Case(make_examples(1)[0], Setting("zoo", 9), "w9", "w8")
    monkeypatch.setattr(publish, "worst_cases", lambda *_: [case])
    subject, results = make_subject(), Results(tmp_path / "run", {})
    (told,) = publish.draw_cases(subject, [], [], results)
    assert [path for path in told["pictures"] if path.endswith("-00-0.webp")]

    def fail(error):
        def draw(*_):
            raise error

        monkeypatch.setattr(publish, "draw_case", draw)

    fail(CannotDrawError("tiles"))
    assert publish.draw_cases(subject, [], [], results)[0]["pictures"] == []
    fail(ValueError("operands could not be broadcast"))
    with pytest.raises(ValueError, match="broadcast"):
        publish.draw_cases(subject, [], [], results)


def test_seeds_go_to_methods_that_draw_with_this_model(command, monkeypatch, tmp_path):  # noqa: F811
    """Two models in one run: with one, ZOO-Prune samples its sensitivity, with the other it does not."""
    shutil.copytree(Path(zooprune.bundled.__file__).parent / "model", tmp_path / "copy")
    kinds = {"bundled": "closed form", "copy": "sampled"}
    monkeypatch.setattr(zooprune.loading, "load_skeleton", lambda name: name)
    monkeypatch.setattr(zooprune.families, "find_family", lambda name: SimpleNamespace(sensitivity=kinds[name]))
    options = ("--limit", "1", "--method", "zoo", "--keep", "64", "--timed", "0", "--seed", "0", "--seed", "5")
    code, _, err = command("eval", "--model", "bundled", "--model", "copy", *options, "--out", "run")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [(row["model"], row["method"], row["seed"]) for row in rows] == [
        ("bundled", "none", None), ("bundled", "zoo", None),
        ("copy", "none", None), ("copy", "zoo", 0), ("copy", "zoo", 5),
    ]  # fmt: skip


def test_a_run_notices_that_weights_or_an_image_changed(command, photo, tmp_path):  # noqa: F811
    shutil.copytree(Path(zooprune.bundled.__file__).parent / "model", tmp_path / "copy")
    (tmp_path / "mine.jsonl").write_text(json.dumps({"image": "photo.jpg", "question": "is there a car?"}))
    arguments = ("eval", "--model", "copy", "--data", "mine.jsonl", "--method", "diversity", "--keep", "1", "--timed",
                 "0", "--out", "run")  # fmt: skip
    assert command(*arguments)[0] == command(*arguments)[0] == 0
    os.utime(tmp_path / "copy" / "model.safetensors", (1, 1))
    code, _, err = command(*arguments)
    assert code == 2 and "holds a run with other weights" in err
    code, _, err = command(*arguments[:-1], "anew")
    Image.new("RGB", (400, 300)).save(photo)
    code, _, err = command(*arguments[:-1], "anew")
    assert code == 2 and "holds a run with other questions" in err


def test_one_token_and_all_tokens_in_one_run(command, photo, tmp_path):  # noqa: F811
    arguments = ("eval", "--limit", "2", "--method", "diversity", "--timed", "0", "--out", "run")
    code, out, _ = command(*arguments, "--keep", "1", "--keep", "1.0", "--json")
    summary = json.loads(out)["models"]["bundled"]["summary"]
    assert code == 0 and [repr(arm["keep"]) for arm in summary] == ["None", "1", "1.0"]
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| diversity | 1 |" in text and "| diversity | 1.0 |" in text
    arguments = (*arguments[:-1], "all")
    assert command(*arguments, "--keep", "1")[0] == 0
    code, _, err = command(*arguments, "--keep", "1.0")
    assert code == 2 and "other settings" in err


def test_questions_are_shown_as_they_are(command, photo, tmp_path):  # noqa: F811
    question = "what is [/top] [red]left\x1b[31m?"
    (tmp_path / "[red].jsonl").write_text(json.dumps({"image": "photo.jpg", "question": question, "answers": "[/x]"}))
    arguments = ("eval", "--data", "[red].jsonl", "--method", "diversity", "--keep", "4", "--timed", "0", "--out")
    code, out, err = command(*arguments, "[/run]")
    assert code == 0 and err == ""
    assert "bundled on [red].jsonl" in out and "written: [/run]/report.md" in out
    code, out, _ = command(*arguments, "other", "--json")
    assert code == 0 and "\x1b" not in out


def test_a_mark_of_the_processor_in_a_question_is_refused_before_any_is_asked(command, photo, tmp_path):  # noqa: F811
    rows = [{"image": "photo.jpg", "question": question} for question in ("a car?", "an <image> of a car?")]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, _, err = command("eval", "--data", "mine.jsonl", "--method", "diversity", "--timed", "0", "--out", "run")
    assert code == 2 and "question 2: the question holds '<image>'" in err and err.count("\n") == 1
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_a_row_can_be_read_by_itself(command, photo, tmp_path):  # noqa: F811
    given = {"image": "photo.jpg", "question": "is there a car?", "label": "yes", "id": "car-1"}
    (tmp_path / "mine.jsonl").write_text("\ufeff" + json.dumps(given))
    arguments = ("eval", "--data", "mine.jsonl", "--method", "diversity", "--keep", "4", "--timed", "0", "--out", "run")
    code, _, err = command(*arguments)
    assert code == 0 and err == ""
    for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert (row["id"], row["question"], row["images"], row["answers"]) == (
            "car-1", "is there a car?", ["photo.jpg"], ["yes"]
        )  # fmt: skip


@pytest.fixture
def pictures(photo, tmp_path):  # noqa: F811
    """A folder of three photographs, of which the second one cannot be read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        shutil.copy(photo, folder / name)
    (folder / "b.jpg").write_bytes(photo.read_bytes()[:2000])
    return folder


FOLDER = ("eval", "--data", "pictures", "--question", "is there a car?", "--method", "diversity", "--keep", "4",
          "--timed", "1", "--batch", "2", "--out", "run")  # fmt: skip


def test_a_bad_file_among_photographs_is_left_out_and_listed(command, pictures, tmp_path):  # noqa: F811
    code, out, err = command(*FOLDER)
    assert code == 0 and "2 questions" in out
    assert "1 question was not asked" in err and "b.jpg: pictures/b.jpg cannot be read" in err
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == ["a.jpg", "a.jpg", "c.jpg", "c.jpg"]
    for name in ("report.md", "report.html"):
        text = (tmp_path / "run" / name).read_text()
        assert "1 question was not asked" in text and "pictures/b.jpg cannot be read" in text
    # The same run again lists it again, and asks nothing.
    code, out, err = command(*FOLDER, "--json")
    assert code == 0 and "b.jpg" in err and list(json.loads(out)["left_out"]["bundled"]) == ["b.jpg"]
    assert len((tmp_path / "run" / "results.jsonl").read_text().splitlines()) == len(rows)


def test_strict_stops_at_a_bad_file(command, pictures):  # noqa: F811
    code, out, err = command(*FOLDER, "--strict")
    assert code == 2 and out == "" and "pictures/b.jpg cannot be read" in err and err.count("\n") == 1


def test_a_folder_of_bad_files_only(command, pictures):  # noqa: F811
    for name in ("a.jpg", "c.jpg"):
        (pictures / name).unlink()
    code, out, err = command(*FOLDER)
    assert code == 2 and out == "" and "no question could be asked; the first one: pictures/b.jpg" in err


def test_many_bad_files_are_listed_in_the_report(command, pictures, tmp_path):  # noqa: F811
    for number in range(12):
        shutil.copy(pictures / "b.jpg", pictures / f"d{number:02}.jpg")
    code, _, err = command(*FOLDER)
    assert code == 0 and "13 questions were not asked" in err and "and 3 more, see report.md" in err
    assert "d11.jpg" not in err and "pictures/d11.jpg cannot be read" in (tmp_path / "run" / "report.md").read_text()


def test_pictures_beyond_a_megabyte_are_linked(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "ROOM", 250)
    case = {"method": "zoo", "keep": 9, "task": "t", "id": "1", "question": "q", "answers": [], "unpruned": "a",
            "pruned": "b", "pictures": ["cases/one.webp", "cases/two.webp"]}  # fmt: skip
    (tmp_path / "cases").mkdir()
    for path in case["pictures"]:
        (tmp_path / path).write_bytes(bytes(200))
    shown = page_module._case(case, page_module._Pictures(tmp_path))
    assert shown.count("<img") == shown.count("<a href") == 1 and 'href="cases/two.webp"' in shown


@pytest.mark.parametrize(
    "shares, seconds, sentence",
    [
        ([0.99, 0.96, 0.9], [1, 0.5, 0.25], "zoo keeps 96.0 % of the score with 20 of 100 .* answers 2.0x faster."),
        ([0.99, 0.96, 0.95], [1, 0.5, 0.98], "zoo keeps 95.0 % of the score with 10 of 100 .* in the same time."),
        (
            [0.7, 0.6, 0.5],
            [2, 1, 1],
            "zoo keeps 70.0 % .* 30 of 100 .* 2.0x slower; nothing that was tried reaches 95 %.",
        ),
        ([0.7, 0.6, 0.5], None, "zoo keeps 70.0 % .* 30 of 100 visual tokens per question; nothing .* reaches 95 %."),
    ],
)
def test_the_headline_is_about_the_smallest_budget_that_is_good_enough(shares, seconds, sentence):
    def arm(method, tokens, kept, total):
        return {"method": method, "kept_share": kept, "kept_share_interval": None, "kept_tokens": tokens,
                "seconds": None if total is None else {"total": total}}  # fmt: skip

    times = seconds or [None] * 3
    summary = [arm("none", 100, 1.0, seconds and 1.0)]
    summary += [arm("zoo", *one) for one in zip((30, 20, 10), shares, times, strict=True)]
    assert re.fullmatch(sentence, headline({"summary": summary}))
    assert headline({"summary": summary[:1]}) == ""
    for each in summary:
        each["kept_share_interval"] = (0.5, 0.9)
    assert re.match(r"zoo keeps \d\d.0 % \(50.0 to 90.0\) of the score", headline({"summary": summary}))


def test_labels_of_a_chart_do_not_overlap():
    points = [Point(1, 100, "a", label="one"), Point(1.01, 100, "b", label="two"), Point(9, 100, "c", label="three")]
    drawn = chart("T", "x", "y", [Series("m", points)], Guide("g", [(1, 100), (9, 100)]))
    assert ">one<" in drawn and ">two<" not in drawn and ">three<" in drawn


def test_a_chart_of_one_point_and_of_equal_points():
    for points in ([Point(64, 100, "a")], [Point(64, 100, "a"), Point(64, 100, "b", (100, 100))]):
        drawn = chart("T", "x", "<y>", [Series("m", points)], Guide("g", [(-inf, 100), (inf, 100)]), ticks={64: "64"})
        assert "nan" not in drawn and "inf" not in drawn.replace("information", "") and "&lt;y&gt;" in drawn
        assert drawn.count("<title>") == len(points)


def test_columns_that_are_not_read_are_said(command, photo, tmp_path):  # noqa: F811
    (tmp_path / "mine.jsonl").write_text(json.dumps({"image": "photo.jpg", "question": "a car?", "[red]label": 1}))
    code, _, err = command("eval", "--data", "mine.jsonl", "--method", "diversity", "--timed", "0", "--out", "run")
    assert code == 0 and err.startswith("warning: mine.jsonl, row 1: not read: the column [red]label")
