"""lmms-eval itself, from its command line and in the process; run by `make test-harness`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from zooprune.bundled.benchmark import load_benchmark, scene_image

pytestmark = pytest.mark.harness

RECIPES = Path(__file__).parents[1] / "recipes"
COUNT, BATCH = 45, 9


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Return an environment in which nothing can be downloaded and nothing is left behind."""
    home = str(tmp_path_factory.mktemp("home"))
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": home,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


@pytest.fixture(scope="module")
def task(tmp_path_factory, offline):
    folder = tmp_path_factory.mktemp("task")
    line = [sys.executable, "-m", "zooprune.integrations.lmms_eval_task", str(folder), "--count", str(COUNT)]
    done = subprocess.run(line, env=offline, capture_output=True, text=True, check=True)
    assert f"--include_path {folder} --tasks zooprune_bundled" in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["questions.parquet", "zooprune_bundled.yaml"]
    return folder


def test_the_command_line_gives_what_zooprune_eval_gives(task, offline, tmp_path):
    """Two rows of a recipe made from our own evaluation: lmms-eval must give the very same replies and scores."""
    line = [str(Path(sys.executable).parent / "zooprune"), "eval", "--limit", str(COUNT), "--batch", str(BATCH)]
    line += ["--method", "zoo", "--keep", "64", "--timed", "0", "--max-new-tokens", "16", "--json"]
    done = subprocess.run([*line, "--out", str(tmp_path / "eval")], env=offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = {arm["method"]: arm for arm in json.loads(done.stdout)["models"]["bundled"]["summary"]}
    replies = [json.loads(row) for row in (tmp_path / "eval" / "results.jsonl").read_text().splitlines()]
    rows, expected = [], {}
    for name, method in (("none", "none"), ("zoo-64", "zoo")):
        order = {item.id: number for number, item in enumerate(load_benchmark())}
        mine = sorted((row for row in replies if row["method"] == method), key=lambda row: order[row["id"]])
        expected[name] = [row["reply"] for row in mine]
        figures = {"all": 100 * summary[method]["accuracy"]}
        figures |= {kind: 100 * one["accuracy"] for kind, one in summary[method]["tasks"].items()}
        arguments = {"method": "none"} if method == "none" else {"method": "zoo", "keep": 64}
        rows.append(arguments | {"library": figures})
    columns = {"all": "accuracy"} | {kind: kind for kind in rows[0]["library"] if kind != "all"}
    table = {
        "title": "bundled",
        "model_args": {"pretrained": "bundled", "device": "cpu"},
        "sources": {"library": "zooprune eval"},
        "benchmarks": {
            column: {"task": "zooprune_bundled", "metrics": [metric], "scale": 100, "tolerance": 1e-6}
            for column, metric in columns.items()
        },
        "rows": rows,
    }
    recipe = tmp_path / "bundled.json"
    recipe.write_text(json.dumps(table))
    out = tmp_path / "out"

    line = [sys.executable, str(RECIPES / "run.py"), str(recipe), "--out", str(out), "--include-path", str(task)]
    done = subprocess.run([*line, "--batch-size", str(BATCH)], env=offline, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    for name, replies in expected.items():
        (samples,) = (out / name).rglob("*_samples_zooprune_bundled.jsonl")
        logged = [json.loads(row) for row in samples.read_text().splitlines()]
        assert [row["filtered_resps"] for row in sorted(logged, key=lambda row: row["doc_id"])] == replies
    assert expected["none"] != expected["zoo-64"]
    (results,) = (out / "zoo-64").rglob("*_results.json")
    throughput = json.loads(results.read_text())["throughput"]
    # One question in nine is about two images.
    assert (throughput["avg_visual_tokens"], throughput["avg_kept_visual_tokens"]) == (640, pytest.approx(640 / 9))

    line = [sys.executable, str(RECIPES / "check.py"), str(out), "--recipe", str(recipe)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 off, 20 not off, 0 missing" in done.stdout and done.stdout.count("(+0.00)") == 20


def test_the_command_line_says_what_is_wrong(task, offline):
    line = [sys.executable, "-m", "lmms_eval", "--model", "zooprune", "--model_args", "pretrained=bundled,method=zoo"]
    line += ["--tasks", "zooprune_bundled", "--include_path", str(task)]
    done = subprocess.run(line, env=offline, capture_output=True, text=True, check=False)
    assert "how much shall zoo keep? give keep=64 (tokens) or keep=0.25 (a share)" in done.stdout + done.stderr


def test_every_recipe_is_understood(monkeypatch, capsys):
    """lmms-eval parses every command, knows every task, and every task has the metrics that are read from it."""
    from lmms_eval import utils
    from lmms_eval.__main__ import parse_eval_args
    from lmms_eval.tasks import TaskManager

    import recipe
    import run

    manager = TaskManager("ERROR", include_path=str(RECIPES / "tasks"), model_name="zooprune")
    for name in recipe.known_recipes():
        table = recipe.load_recipe(name)
        monkeypatch.setattr(sys, "argv", ["run.py", name, "--print", "--set", "pretrained=bundled"])
        capsys.readouterr()
        assert run.main() == 0
        for line in capsys.readouterr().out.splitlines():
            monkeypatch.setattr(sys, "argv", line.split()[2:])
            _, arguments = parse_eval_args()
            parsed = utils.simple_parse_args_string(arguments.model_args)
            assert arguments.model == "zooprune" and parsed["pretrained"] == "bundled"
            assert ("keep" in parsed) == (parsed["method"] != "none")
            tasks = arguments.tasks.split(",")
            assert sorted(manager.match_tasks(tasks)) == sorted(tasks)
        for column in table.benchmarks.values():
            config = utils.load_yaml_config(manager.task_index[column.task]["yaml_path"], mode="full")
            assert set(column.metrics) <= {metric["metric"] for metric in config["metric_list"]}


def test_textvqa_shows_the_words_that_were_read():
    from lmms_eval import utils

    config = utils.load_yaml_config(str(RECIPES / "tasks" / "textvqa_val_ocr.yaml"), mode="full")
    prompt = config["doc_to_text"](
        {"question": "what is written?", "ocr_tokens": ["STOP", "HERE"]}, config["lmms_eval_specific_kwargs"]["default"]
    )
    assert prompt == (
        "What is written?\nReference OCR token: STOP, HERE\nAnswer the question using a single word or phrase."
    )


def request(question, image, options, number, kind="image"):
    """Return a request as lmms-eval makes it for models that read chat messages."""
    from lmms_eval.api.instance import Instance

    content = [{"type": kind, "url": image}, {"type": "text", "text": question}]
    arguments = ("", lambda doc: [{"role": "user", "content": content}], options, number, "task", "test")
    metadata = {"task": "task", "doc_id": number, "repeats": 1}
    return Instance("generate_until", arguments, 0, metadata)


@pytest.fixture
def lmm(request):
    from zooprune.integrations.lmms_eval import ZooPruneLmm

    model = ZooPruneLmm("bundled", batch_size=2, device="cpu", method="zoo", keep=64)
    model.task_dict["task"] = {"test": [None] * 9}
    return model


def test_replies_come_in_the_order_of_the_requests_whatever_is_batched(lmm):
    items = [item for item in load_benchmark()[:12] if len(item.scenes) == 1][:9]
    options = [{"max_new_tokens": 1 + number % 2, "until": ["\n\n"]} for number in range(9)]
    requests = [request(item.question, scene_image(item.scenes[0]), options[n], n) for n, item in enumerate(items)]
    together = [reply.text for reply in lmm.generate_until(requests)]
    alone = [lmm.generate_until([one])[0].text for one in requests]
    assert together == alone and len(set(together)) > 3


def test_options_of_the_harness_reach_generate(lmm):
    seen = []
    original = lmm._answerer.model.generate
    lmm._answerer.model.__dict__["generate"] = lambda **options: seen.append(options) or original(**options)
    item = load_benchmark()[0]

    def ask(**options):
        torch.manual_seed(0)
        reply = lmm.generate_until([request(item.question, scene_image(item.scenes[0]), options, 0)])[0]
        return reply, seen.pop()

    _, greedy = ask(temperature=0, top_p=1.0, do_sample=False, max_new_tokens=3, num_beams=2, image_aspect_ratio="pad")
    assert greedy["do_sample"] is False and greedy["max_new_tokens"] == 3 and greedy["num_beams"] == 2
    assert not {"temperature", "top_p", "image_aspect_ratio", "until"} & set(greedy)
    _, drawn = ask(temperature=0.7, top_p=0.9)
    assert drawn["do_sample"] is True and drawn["temperature"] == 0.7 and drawn["top_p"] == 0.9
    assert drawn["max_new_tokens"] == 1024
    assert ask(do_sample=True)[1]["temperature"] == 1.0
    assert ask(temperature=0.7, do_sample=False)[1]["do_sample"] is False
    whole = ask()[0]
    assert ask(until=whole.text[1:])[0].text == whole.text[:1] and whole.token_counts.output_tokens > 1


def test_a_system_prompt_comes_first_from_text_or_file(tmp_path):
    from zooprune.integrations.lmms_eval import ZooPruneLmm

    (tmp_path / "prompt.txt").write_text("be brief\n")
    for prompt in ("be brief", str(tmp_path / "prompt.txt")):
        model = ZooPruneLmm("bundled", method="none", device="cpu", system_prompt=prompt)
        model.task_dict["task"] = {"test": [None]}
        conversation = model._conversation(request("why?", Image.new("RGB", (9, 9)), {}, 0))
        assert conversation[0] == {"role": "system", "content": [{"type": "text", "text": "be brief"}]}
        assert [part["type"] for part in conversation[1]["content"]] == ["image", "text"]


def test_what_it_cannot_do_is_said(lmm):
    from zooprune.integrations.lmms_eval import ZooPruneLmm

    with pytest.raises(ValueError, match="task asks about videos or sounds"):
        lmm.generate_until([request("why?", "clip.mp4", {}, 0, kind="video")])
    with pytest.raises(NotImplementedError, match="tasks that generate"):
        lmm.loglikelihood([])
    with pytest.raises(NotImplementedError, match="tasks of one round"):
        lmm.generate_until_multi_round([])
    with pytest.raises(ValueError, match="batch_size=auto is not supported"):
        ZooPruneLmm("bundled", batch_size="auto", keep=64)


def test_cleaning_lets_go_of_the_model(lmm):
    model = lmm._answerer.model
    lmm.clean()
    assert "generate" not in vars(model) and not hasattr(lmm, "_answerer")
