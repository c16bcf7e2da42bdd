"""Rows as they come: the same at once, in batches, and after a kill."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import clip_llama, make_processor
from zooprune import prune
from zooprune.data.examples import Example, Region, fingerprint
from zooprune.data.images import load_image
from zooprune.encoding import remembering_encodings
from zooprune.evaluation.runner import Results, Setting, Subject, evaluate, grid
from zooprune.policy import Policy
from zooprune.pruners import ZooPrune

METHODS, KEEPS, SEEDS = ["zoo", "random"], [9, 0.5], [0, 1]


def picture(seed: int) -> Image.Image:
    return Image.linear_gradient("L").rotate(37 * seed).resize((84, 84)).convert("RGB")


def make_examples(count: int = 5) -> list[Example]:
    """Questions of different lengths; the last one is about two images."""
    examples = []
    for number in range(count):
        question = " ".join(f"w{5 + number + word}" for word in range(1 + number % 3))
        images = (partial(picture, number),) * (2 if number == count - 1 else 1)
        examples.append(Example(str(number), "questions", images, question, ("w9",), (Region(0, (0, 0, 0.5, 0.5)),)))
    return examples


def make_subject() -> Subject:
    model = clip_llama()
    # Without this it says special tokens only, which a reply leaves out.
    model.generation_config.suppress_tokens = list(range(5))
    return Subject("tiny", model, make_processor(), max_new_tokens=3)


def run(folder: Path, **options) -> list[dict]:
    results = Results(folder, {"settings": "all"})
    evaluate(make_subject(), make_examples(), grid(METHODS, KEEPS, SEEDS), results, **options)
    return results.rows


def timeless(rows: list[dict]) -> dict:
    """Return rows without what differs between runs, by what tells them apart."""
    return {(r["method"], r["keep"], r["seed"], r["id"]): r | {"seconds": None} for r in rows}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), batch=2, timed=1)


def test_every_question_has_a_row_for_every_setting(whole):
    assert len({row["reply"] for row in whole}) > 5
    # All tokens; zoo with two budgets; random with two budgets and two seeds.
    assert len(whole) == len(timeless(whole)) == 5 * (1 + 2 + 4)
    by_key = timeless(whole)
    full, pruned, pair = (by_key[key] for key in (
        ("none", None, None, "0"), ("zoo", 9, None, "0"), ("zoo", 9, None, "4")))  # fmt: skip
    assert (full["visual_tokens"], full["kept_tokens"], pruned["kept_tokens"]) == (36, 36, 9)
    assert full["prompt_tokens"] - pruned["prompt_tokens"] == 27 and full["flops"] > pruned["flops"] > 0
    assert full["kv_bytes"] / full["prompt_tokens"] == pruned["kv_bytes"] / pruned["prompt_tokens"]
    assert full["evidence"] == {"regions": 1, "kept": 1}
    assert (pair["visual_tokens"], pair["kept_tokens"]) == (72, 18)
    assert by_key[("random", 0.5, 1, "3")]["kept_tokens"] == 18


def test_only_the_timed_questions_have_seconds(whole):
    assert {row["id"] for row in whole if row["seconds"]} == {"0"}
    zoo = next(row for row in whole if row["method"] == "zoo" and row["id"] == "0")
    assert set(zoo["seconds"]) == {"encode", "score", "select", "prefill", "decode", "total"}
    stages = sum(value for name, value in zoo["seconds"].items() if name != "total")
    assert 0 < stages <= zoo["seconds"]["total"]
    full = next(row for row in whole if row["method"] == "none" and row["id"] == "0")
    assert set(full["seconds"]) == {"encode", "prefill", "decode", "total"}


def test_batches_change_no_reply(whole, tmp_path):
    assert timeless(run(tmp_path, batch=5, timed=0)) == timeless(whole)


def test_replies_are_what_the_model_says_by_itself(whole):
    subject = make_subject()
    inputs = subject.prepare(make_examples()[:1])
    by_key = timeless(whole)

    def said() -> str:
        output = subject.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        return subject.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    assert by_key[("none", None, None, "0")]["reply"] == said()
    with prune(subject.model, ZooPrune(keep=9)):
        assert by_key[("zoo", 9, None, "0")]["reply"] == said()


def test_a_torn_line_is_asked_again(whole, tmp_path):
    run(tmp_path, batch=2, timed=1)
    file = tmp_path / "results.jsonl"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 5])
    assert not file.read_bytes().endswith(b"\n")
    rows = run(tmp_path, batch=2, timed=1)
    assert timeless(rows) == timeless(whole) and len(rows) == len(whole)
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows


def test_a_finished_run_asks_nothing(tmp_path, monkeypatch):
    run(tmp_path, batch=2, timed=1)
    monkeypatch.setattr(Subject, "generate", lambda *_: pytest.fail("asked again"))
    told = []
    run(tmp_path, batch=2, timed=1, progress=told.append)
    assert told == []


@pytest.mark.slow
def test_a_killed_run_goes_on(whole, tmp_path):
    script = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; import test_evaluation_runner as t; "
        f"t.run(Path({str(tmp_path)!r}), batch=2, timed=0, progress=lambda rows: __import__('time').sleep(0.2))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1])
    file = tmp_path / "results.jsonl"
    while process.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < 6):
        time.sleep(0.02)
    process.kill()
    assert process.wait() != 0
    assert 6 <= file.read_bytes().count(b"\n") < len(whole)
    assert timeless(run(tmp_path, batch=2, timed=0)) == timeless(whole)


def test_another_configuration_is_refused(tmp_path):
    Results(tmp_path, {"batch": 2, "keep": [9]})
    with pytest.raises(ValueError, match="holds a run with other keep; choose another folder with --out"):
        Results(tmp_path, {"batch": 2, "keep": [64]})
    description = json.loads((tmp_path / "run.json").read_text())
    assert set(description["environment"]["versions"]) == {"zooprune", "torch", "transformers"}
    description["environment"]["versions"]["torch"] = "0.1"
    (tmp_path / "run.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="other torch"):
        Results(tmp_path, {"batch": 2, "keep": [9]})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        Results(tmp_path, {"batch": 2, "keep": [9]})


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    first = Results(tmp_path, {})
    with pytest.raises(ValueError, match=r"another run writes to .*; wait for it or choose another folder"):
        Results(tmp_path, {})
    del first
    Results(tmp_path, {})


def test_rows_are_on_disk_before_the_next_are_asked(tmp_path, monkeypatch):
    """What was appended outlives a power cut: it is synced, and after it was written."""
    results = Results(tmp_path, {})
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (sync(number), synced.append(os.fstat(number).st_size)))
    row = {"model": "m", "method": "none", "keep": None, "seed": None}
    for one in ("a", "b"):
        results.append([row | {"id": one}])
        assert synced[-1:] == [(tmp_path / "results.jsonl").stat().st_size]
    assert len(synced) == 2 and synced[0] < synced[1]


def test_another_commit_is_refused(tmp_path):
    Results(tmp_path, {})
    path = tmp_path / "run.json"
    description = json.loads(path.read_text())
    description["environment"]["commit"] = "another"
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="holds a run with other commit"):
        Results(tmp_path, {})


def test_images_are_let_go_after_their_turn(tmp_path):
    """At no time more images are held than two batches have, whatever the number of questions."""
    alive, most = weakref.WeakSet(), [0]

    class Noted:
        """Stands for an image for as long as somebody holds its pixels."""

    def load(number):
        image = picture(number)
        image.note = Noted()
        alive.add(image.note)
        most[0] = max(most[0], len(alive))
        return image

    examples = [replace(one, images=(partial(load, number),)) for number, one in enumerate(make_examples(12))]
    evaluate(make_subject(), examples, grid(["diversity"], [9]), Results(tmp_path, {}), batch=2, timed=0)
    gc.collect()
    assert most[0] <= 4 and len(alive) == 0


def test_a_question_that_cannot_be_asked_is_named_before_any_is(tmp_path):
    examples = make_examples()
    examples[3] = replace(examples[3], question="w5 <image> w6")
    results = Results(tmp_path, {})
    with pytest.raises(ValueError, match="question 3: the question holds '<image>'"):
        evaluate(make_subject(), examples, grid(["diversity"], [9]), results)
    assert results.rows == []


def test_a_question_whose_image_is_refused_is_left_out(tmp_path, whole):
    def broken():
        raise load_error

    examples = make_examples()
    spoilt = [*examples[:2], replace(examples[2], images=(broken,)), *examples[3:]]
    with pytest.raises(ValueError, match=r"photo\.png does not exist") as caught:
        load_image("photo.png")
    load_error = caught.value
    results, settings, counted = Results(tmp_path, {}), grid(METHODS, KEEPS, SEEDS), []
    left_out = evaluate(make_subject(), spoilt, settings, results, batch=2, timed=0, progress=counted.append)
    assert left_out == {"2": str(load_error)} and sum(counted) == len(spoilt) * len(settings)
    assert timeless(results.rows) == {key: row for key, row in timeless(whole).items() if key[-1] != "2"}
    assert evaluate(make_subject(), spoilt, settings, results, batch=2, timed=0) == left_out
    with pytest.raises(ValueError, match=r"photo\.png does not exist"):
        evaluate(make_subject(), spoilt, settings, results, batch=2, timed=0, strict=True)


def test_faults_of_the_program_are_not_taken_for_bad_images(tmp_path):
    def faulty():
        return np.ones(2) + np.ones(3)

    (example,) = make_examples(1)
    with pytest.raises(ValueError, match="broadcast"):
        evaluate(make_subject(), [replace(example, images=(faulty,))], [Setting()], Results(tmp_path, {}), timed=0)


def test_a_damaged_line_is_named(tmp_path):
    Results(tmp_path, {})
    (tmp_path / "results.jsonl").write_text('{"model": 1}\n')
    with pytest.raises(ValueError, match=r"results.jsonl, line 1 is damaged"):
        Results(tmp_path, {})


def test_the_fingerprint_tells_questions_apart():
    examples = make_examples()
    assert fingerprint(examples) == fingerprint(make_examples()) != fingerprint(examples[:-1])


def test_seeds_only_where_they_matter():
    labels = [setting.described for setting in grid(["none", "zoo", "random", "zoo"], [64, 64], [0, 1, 2])]
    assert labels == [["none", None, None], ["zoo", 64, None], *(["random", 64, seed] for seed in (0, 1, 2))]
    # Where sensitivity is sampled, ZOO-Prune draws as well.
    sampled = grid(["zoo", "diversity"], [64], [0, 1], sensitivity="sampled")
    assert [one.described for one in sampled[1:]] == [["zoo", 64, 0], ["zoo", 64, 1], ["diversity", 64, None]]


def test_one_token_and_all_tokens_are_two_settings(tmp_path):
    settings = grid(["diversity"], [1, 1.0, 1])
    assert [repr(one.keep) for one in settings] == ["None", "1", "1.0"]
    assert len({one.key for one in settings}) == 3
    results = Results(tmp_path, {"settings": [one.described for one in settings]})
    evaluate(make_subject(), make_examples(), settings, results, timed=0)
    kept = {repr(row["keep"]): row["kept_tokens"] for row in results.rows if row["id"] == "0"}
    assert kept == {"None": 36, "1": 1, "1.0": 36} and len(results.rows) == 3 * 5


def test_one_token_does_not_resume_a_run_of_all_tokens(tmp_path):
    Results(tmp_path, {"settings": [Setting("zoo", 1).described]})
    with pytest.raises(ValueError, match="other settings"):
        Results(tmp_path, {"settings": [Setting("zoo", 1.0).described]})


def test_a_setting_is_checked_when_it_is_made():
    assert Setting("zoo", 64, 1, {"estimator": "jvp"}, Policy(scope="tile")).label == "zoo(estimator=jvp, scope=tile)"
    with pytest.raises(ValueError, match="did you mean 'zoo'"):
        Setting("zooo", 64)
    with pytest.raises(ValueError, match="zoo needs a budget"):
        Setting("zoo")
    with pytest.raises(TypeError, match="diversity has no option seed"):
        Setting("diversity", 64, 0)


def test_encodings_are_remembered_inside_the_block_only():
    subject = make_subject()
    inputs, others = (subject.prepare(make_examples()[number : number + 1]) for number in (0, 1))
    calls = []
    subject.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    with remembering_encodings():
        first = subject.generate(inputs, Setting("zoo", 9)).texts
        again = subject.generate(inputs, Setting("zoo", 9)).texts
        subject.generate(inputs, Setting("random", 9))
        assert len(calls) == 1 and first == again
        subject.generate(others, Setting("zoo", 9))
        assert len(calls) == 2
    subject.generate(inputs, Setting("zoo", 9))
    assert len(calls) == 3
