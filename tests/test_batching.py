"""A batch job: the same rows at once, after a kill at any point, and whatever is wrong with some of them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from conftest import clip_llama, make_processor
from test_cli import command  # noqa: F401
from zooprune.batching import answer_all, on_ray, worker
from zooprune.batching.shards import Shards
from zooprune.plan import Plan

ROWS = 11
BROKEN = {
    "2": "cannot be read, the file may be cut short",
    "5": "does not exist",
    "7": "more than 120,000,000; scale it",
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny model in a folder."""
    folder = tmp_path_factory.mktemp("tiny")
    model = clip_llama()
    # Rows of words that say nothing or are said too often.
    with torch.no_grad():
        model.lm_head.weight[[0, 1, 2, 3, 4, 20]] = 0
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plan(checkpoint):
    return Plan(str(checkpoint), "zoo", 9)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Questions as JSON Lines, about one image or two; rows 3, 6 and 8 cannot be answered."""
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for number in range(ROWS):
        picture(number).save(folder / f"{number}.png")
        row = {"id": str(number), "question": " ".join(f"w{5 + number + word}" for word in range(1 + number % 3))}
        rows.append(row | ({"images": ["0.png", f"{number}.png"]} if number == 4 else {"image": f"{number}.png"}))
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    (folder / "5.png").unlink()
    Image.new("1", (11000, 11000)).save(folder / "7.png")
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def picture(number: int) -> Image.Image:
    squares = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize((84, 84), Image.Resampling.NEAREST)


def run(source, folder, plan, **options):
    """Do a job in batches of 2 and files of 4 rows."""
    return answer_all(source, folder, plan, **{"batch": 2, "shard": 4, "max_new_tokens": 3} | options)


def read(folder) -> list[dict]:
    """Return all rows of a job, in order, without the seconds."""
    table = pq.read_table(sorted(Path(folder).glob("*.parquet")))
    return table.drop(["seconds"]).to_pylist()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, photos, plan):
    folder = tmp_path_factory.mktemp("whole")
    end = run(photos, folder, plan)
    assert (end.total, end.done, end.failed, end.asked) == (ROWS, ROWS, 3, ROWS) and end.rate > 0
    return folder


def test_every_row_is_there_with_its_reply_or_its_error(whole):
    assert sorted(path.name for path in whole.iterdir() if path.name != ".lock") == [
        "_run.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet",
    ]  # fmt: skip
    rows = read(whole)
    assert [row["id"] for row in rows] == [str(number) for number in range(ROWS)]
    for row in rows:
        if row["id"] in BROKEN:
            assert BROKEN[row["id"]] in row["error"] and "\n" not in row["error"]
            assert row["reply"] is row["kept_tokens"] is row["total_tokens"] is None
        else:
            pair = row["id"] == "4"
            assert row["error"] is None and len(row["reply"].split()) == 3
            assert (row["kept_tokens"], row["total_tokens"]) == ((18, 72) if pair else (9, 36))
            assert row["images"] == (["0.png", "4.png"] if pair else [f"{row['id']}.png"])
    assert rows[1]["question"] == "w6 w7" and len({row["reply"] for row in rows}) > 3
    assert all(second > 0 for second in pq.read_table(whole / "part-00000.parquet")["seconds"].to_pylist())


def test_the_folder_is_read_as_a_table(whole):
    """By its name alone, whatever else is in it."""
    assert pd.read_parquet(whole)["id"].tolist() == [str(number) for number in range(ROWS)]
    assert pq.read_table(whole).drop(["seconds"]).to_pylist() == read(whole)


def test_a_folder_of_an_older_version_is_refused(photos, plan, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="batch job of an older version; choose another folder with --output"):
        run(photos, tmp_path, plan)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_folder_says_what_made_it(whole, photos, plan):
    made = json.loads((whole / "_run.json").read_text())
    assert made["configuration"]["input"] == str(photos) and made["configuration"]["method"] == "zoo"
    assert made["configuration"]["keep"] == 9 and made["configuration"]["policy"]["dropped"] == "discard"
    assert set(made["environment"]["versions"]) == {"zooprune", "torch", "transformers"}


def test_batches_and_files_of_another_size_change_no_row(whole, photos, plan, tmp_path):
    for number, sizes in enumerate(({"batch": 1, "shard": 1}, {"batch": 8, "shard": 100})):
        run(photos, tmp_path / str(number), plan, **sizes)
        assert read(tmp_path / str(number)) == read(whole)


@pytest.mark.parametrize("after", range(0, ROWS, 2))
def test_an_interrupted_job_resumes(whole, photos, plan, tmp_path, monkeypatch, after):
    """Wherever it stops, no row of a finished file is asked again, and in the end the rows are the same."""
    told = []

    def stop(progress):
        told.append(progress)
        if progress.asked >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(photos, tmp_path, plan, progress=stop)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    there = [row["id"] for row in read(tmp_path)] if finished else []
    assert len(finished) == told[-1].asked // 4

    asked = []
    answer = worker.Worker.answer
    monkeypatch.setattr(
        worker.Worker,
        "answer",
        lambda self, batch: asked.extend(one.id for one in batch.values()) or answer(self, batch),
    )
    end = run(photos, tmp_path, plan)
    assert sorted(asked + there, key=int) == [str(number) for number in range(ROWS)]
    assert (end.done, end.failed, end.asked) == (ROWS, 3, len(asked))
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    assert read(tmp_path) == read(whole)


def test_a_finished_job_loads_no_model(whole, photos, plan, monkeypatch):
    monkeypatch.setattr(worker, "load_model", lambda *_, **__: pytest.fail("loaded"))
    end = run(photos, whole, plan)
    assert (end.done, end.failed, end.asked, end.rate) == (ROWS, 3, 0, None)


def test_a_file_is_whole_or_not_there(photos, plan, tmp_path, monkeypatch, whole):
    """Stopped while a file is written, a job leaves nothing of its name and clears up what it finds."""
    write = pq.write_table

    def half(table, path):
        write(table, path)
        path.write_bytes(path.read_bytes()[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(OSError, match="no space"):
        run(photos, tmp_path, plan)
    assert not list(tmp_path.glob("*part*"))
    monkeypatch.undo()
    # As a killed process leaves it.
    (tmp_path / ".part-00000.parquet.123.tmp").write_bytes(b"PAR1")
    run(photos, tmp_path, plan)
    assert not list(tmp_path.glob(".part*")) and read(tmp_path) == read(whole)


@pytest.mark.slow
def test_a_killed_job_resumes(whole, photos, plan, tmp_path):
    script = (
        "import sys, time; sys.path.insert(0, 'tests'); import test_batching as t; from zooprune.plan import Plan; "
        f"t.run({str(photos)!r}, {str(tmp_path)!r}, Plan({plan.model!r}, 'zoo', 9), "
        "progress=lambda progress: time.sleep(0.2))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1])
    while process.poll() is None and not list(tmp_path.glob("*.parquet")):
        time.sleep(0.02)
    process.kill()
    assert process.wait() != 0
    assert 0 < len(list(tmp_path.glob("*.parquet"))) < 3
    run(photos, tmp_path, plan)
    assert read(tmp_path) == read(whole)


def test_another_job_is_refused(photos, plan, tmp_path, checkpoint):
    run(photos, tmp_path, plan, limit=2)
    for options, named in (({"limit": 3}, "questions"), ({"batch": 3}, "batch"), ({"max_new_tokens": 4}, "max-new")):
        with pytest.raises(ValueError, match=rf"holds a run with other {named}.*choose another folder with --output"):
            run(photos, tmp_path, plan, **{"limit": 2} | options)
    for other in (Plan(str(checkpoint), "zoo", 10), Plan(str(checkpoint), "random", 9, {"seed": 1})):
        with pytest.raises(ValueError, match=r"holds a run with other (keep|method, options); choose"):
            run(photos, tmp_path, other, limit=2)
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"part-00000.parquet is damaged; delete it and run the same command again"):
        run(photos, tmp_path, plan, limit=2)


def test_two_jobs_do_not_write_to_one_folder(tmp_path):
    first = Shards(tmp_path, {}, 4, 2)
    with pytest.raises(ValueError, match="another run writes to"):
        Shards(tmp_path, {}, 4, 2)
    assert first.missing == [range(0, 2), range(2, 4)]


def test_every_kind_of_input(plan, tmp_path, whole):
    """A folder of pictures, a Parquet file and a folder of them give the same replies about the same pictures."""
    (tmp_path / "folder").mkdir()
    encoded = []
    for number in range(3):
        file = io.BytesIO()
        picture(number).save(file, "PNG")
        (tmp_path / "folder" / f"{number}.png").write_bytes(file.getvalue())
        encoded.append({"bytes": file.getvalue(), "path": f"{number}.png"})
    encoded[2]["bytes"] = b"no image"
    (tmp_path / "folder" / "2.png").write_bytes(b"no image")
    table = pa.table({"image": encoded, "question": ["w9 w10"] * 3})
    pq.write_table(table, tmp_path / "photos.parquet")
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "photos.parquet")
    found = {}
    for source, question in (("folder", "w9 w10"), ("photos.parquet", None), ("set", None)):
        end = run(tmp_path / source, tmp_path / "out" / source, plan, question=question)
        assert end.failed == 1
        found[source] = read(tmp_path / "out" / source)
        assert [row["images"] for row in found[source]] == [["0.png"], ["1.png"], ["2.png"]]
        assert "not an image Pillow can read" in found[source][2]["error"]
    replies = {source: [(row["reply"], row["kept_tokens"]) for row in rows] for source, rows in found.items()}
    assert replies["folder"] == replies["photos.parquet"] == replies["set"]


def test_a_question_the_model_fails_at_does_not_touch_the_others(whole, photos, plan, tmp_path, monkeypatch):
    """Whatever the model raises, the questions of its batch are asked one by one."""
    generate = worker.generate

    def fail(error, model, processor, inputs, **options):
        # Row 4 is the only one about two images.
        if len(inputs["pixel_values"]) > len(inputs["input_ids"]):
            raise error
        return generate(model, processor, inputs, **options)

    errors = {
        "the model failed at this question (IndexError: out of range)": IndexError("out of\n range"),
        "the device has too little memory": torch.OutOfMemoryError("CUDA out of memory"),
    }
    for number, (told, error) in enumerate(errors.items()):
        monkeypatch.setattr(worker, "generate", partial(fail, error))
        assert run(photos, tmp_path / str(number), plan, batch=4).failed == 4
        rows = read(tmp_path / str(number))
        assert told in rows[4]["error"]
        assert rows[:4] + rows[5:] == read(whole)[:4] + read(whole)[5:]


def test_a_question_with_the_processors_mark_fails_alone(plan, tmp_path):
    picture(0).save(tmp_path / "0.png")
    rows = [{"image": "0.png", "question": question} for question in ("w5", "w5 <image> w6", "w7")]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(tmp_path / "mine.jsonl", tmp_path / "out", plan, batch=8).failed == 1
    found = read(tmp_path / "out")
    assert [row["error"] is None for row in found] == [True, False, True] and "the question holds" in found[1]["error"]


def test_the_bundled_questions_from_the_command_line(command, tmp_path):  # noqa: F811
    line = ("batch", "--input", "bundled", "--limit", "3", "--output", "answers", "--keep", "64", "--batch", "3")
    code, out, err = command(*line)
    assert code == 0 and err == ""
    first, last = out.splitlines()
    assert first.startswith("this run: 3 rows in ") and last == "answers: 3 rows, 0 failed"
    assert [row["reply"] for row in read(tmp_path / "answers")] == ["yes", "cat", "no"]
    made = json.loads((tmp_path / "answers" / "_run.json").read_text())["configuration"]
    assert made["policy"]["dropped"] == "stand in" and made["keep"] == 64
    code, out, _ = command(*line, "--json")
    told = json.loads(out)
    assert code == 0 and (told["rows"], told["failed"], told["asked"]) == (3, 0, 0)
    code, _, err = command(*line, "--method", "divprune")
    assert code == 2 and "holds a run with other method" in err and err.count("\n") == 1


def test_failed_rows_are_counted_and_change_the_exit_code(command, photos, plan):  # noqa: F811
    line = ("batch", "--input", photos, "--output", "out", "--model", plan.model, "--keep", "9", "--limit", "3")
    for _ in range(2):
        code, out, err = command(*line)
        assert code == 1 and err == "" and out.splitlines()[-1] == "out: 3 rows, 1 failed"


def test_a_log_file_gets_a_line_now_and_then(command, photos, plan, monkeypatch):  # noqa: F811
    monkeypatch.setattr("zooprune.cli.terminal._SECONDS_BETWEEN_LINES", 0)
    line = ("batch", "--input", photos, "--output", "out", "--model", plan.model, "--keep", "9", "--batch", "4")
    _, _, err = command(*line)
    lines = err.splitlines()
    assert lines[0] == "0 of 11 rows, 0 failed" and lines[1] == "4 of 11 rows, 1 failed"
    assert lines[2].startswith("8 of 11 rows, 3 failed, ") and lines[2].endswith(" left") and " rows/s, " in lines[2]


BAD = {
    "no such input": (["--input", "./none.jsonl"], "does not exist"),
    "pictures without a question": (["--input", "."], "say what to ask about them with --question"),
    "method": (["--method", "zooo"], "did you mean 'zoo'"),
    "seed": (["--method", "diversity", "--seed", "1"], "diversity has no option seed"),
    "keep": (["--keep", "0"], "at least 1"),
    "dropped": (["--dropped", "eaten"], "is not one of"),
    "model": (["--model", "nobody/nothing"], "cannot load model"),
    "dtype": (["--dtype", "float8"], "choose one of"),
    "device": (["--device", "toaster"], "use auto, cpu or cuda"),
    "output is a file": (["--output", "file.txt"], "is a file; choose a folder with --output"),
    "workers": (["--workers", "2"], "give --address too, or leave out --workers"),
    "plan": (["--plan", "plan.json", "--keep", "64"], "leave out --method, --keep"),
}


@pytest.mark.parametrize("case", BAD)
def test_options_are_checked_before_anything_is_loaded(command, tmp_path, monkeypatch, case):  # noqa: F811
    arguments, told = BAD[case]
    monkeypatch.setattr(worker, "load_model", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "file.txt").write_text("")
    code, out, err = command("batch", "--input", "bundled", "--output", "out", "--limit", "2", *arguments)
    assert code == 2 and out == "" and told in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_ray_an_address_says_what_to_install(command, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = command("batch", "--input", "bundled", "--output", "out", "--address", "local")
    assert code == 2 and "pip install 'zooprune[ray]'" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_cannot_be_reached_is_one_sentence():
    def init(**_):
        raise ConnectionError("Could not find any running Ray instance.\nMore of it.")

    with pytest.raises(ValueError, match=r"cannot reach a Ray cluster at 'auto' \(Could not find any running Ray inst"):
        on_ray._connect(SimpleNamespace(init=init), "auto")


def test_a_device_that_is_broken_stops_the_job(photos, plan, tmp_path, monkeypatch):
    """Otherwise every further row would be written as failed."""

    def broken(*_, **__):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(worker, "generate", broken)
    monkeypatch.setattr(worker, "_check_device", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        run(photos, tmp_path, plan)
    assert not list(tmp_path.glob("*.parquet"))


def test_shards_reach_the_disk_before_their_name(photos, plan, tmp_path, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (sync(number), synced.append(os.fstat(number).st_size)))
    run(photos, tmp_path, plan, limit=4)
    assert synced[-1] == (tmp_path / "part-00000.parquet").stat().st_size
