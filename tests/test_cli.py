"""The command line as a user meets it: what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from zooprune import cli
from zooprune.bundled import BUNDLED_FOLDER

QUESTION = "Is there a dog?"


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the command line inside an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zooprune", *map(str, arguments)])
        # The consoles keep the streams of the moment they were made.
        monkeypatch.setattr(cli, "_out", cli.Console(file=sys.stdout, width=80))
        monkeypatch.setattr(cli, "_err", cli.Console(file=sys.stderr, width=80))
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.effect_noise((400, 300), 90).convert("RGB").save(path)
    return path


def test_without_arguments_it_asks_about_the_bundled_scene(command, tmp_path):
    code, out, err = command("ask")
    assert code == 0 and err == ""
    assert all(len(line) <= 80 for line in out.splitlines())
    for word in ("answer", "576", "64", "prefill GFLOPs", "KV cache MB", "encode ms", "score ms", "select ms",
                 "prefill ms", "decode ms", "right answer", "picture: answer.png"):  # fmt: skip
        assert word in out
    with Image.open(tmp_path / "answer.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000


def test_json_is_all_that_is_printed(command, photo, tmp_path):
    code, out, err = command("ask", photo, QUESTION, "--keep", "0.25", "--method", "random", "--json")
    result = json.loads(out)
    assert code == 0 and err == ""
    assert result["question"] == QUESTION
    assert result["full"]["visual_tokens"] == 576 and result["pruned"]["visual_tokens"] == 144
    assert [len(kept) for kept in result["pruned"]["kept"]] == [144]
    assert result["full"]["prefill_flops"] > result["pruned"]["prefill_flops"] > 0
    assert set(result["pruned"]["seconds"]) == {"encode", "score", "select", "prefill", "decode"}
    assert result["picture"] is None and not (tmp_path / "answer.png").exists()


def test_a_checkpoint_in_a_folder(command, photo, tmp_path, bundled):
    model, processor = bundled
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    _, mine, _ = command("ask", photo, QUESTION, "--json")
    code, out, err = command("ask", photo, QUESTION, "--json", "--model", folder, "--dtype", "float32")
    assert code == 0 and err == ""
    assert json.loads(out)["pruned"]["kept"] == json.loads(mine)["pruned"]["kept"]


def test_half_precision_runs(command, photo):
    code, out, _ = command("ask", photo, QUESTION, "--json", "--dtype", "bfloat16")
    assert code == 0 and json.loads(out)["pruned"]["visual_tokens"] == 64


def test_the_methods_are_listed(command):
    code, out, _ = command("methods", "--json")
    rows = json.loads(out)
    assert code == 0 and {"zoo", "random", "sensitivity", "diversity"} <= {row["name"] for row in rows}
    code, out, _ = command("methods")
    assert code == 0 and "arXiv" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_the_models_are_listed(command):
    code, out, _ = command("models", "--json")
    assert code == 0 and "Qwen2_5_VLForConditionalGeneration" in [
        name for row in json.loads(out) for name in row["classes"]
    ]
    code, out, _ = command("models")
    assert code == 0 and "LLaVA-NeXT" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_one_model_can_be_looked_up(command):
    code, out, _ = command("models", "bundled", "--json")
    assert code == 0 and json.loads(out)[0]["classes"] == ["LlavaForConditionalGeneration"]
    code, _, err = command("models", "nobody/nothing")
    assert code == 2 and "cannot load model" in err and err.count("\n") == 1


BAD = {
    "missing file": (["none.png", QUESTION], "does not exist"),
    "folder": ([".", QUESTION], "is a folder"),
    "no question": (["photo.jpg"], "give a question"),
    "keep 0": (["--keep", "0"], "at least 1"),
    "keep 2.5": (["--keep", "2.5"], "share in (0, 1]"),
    "keep nan": (["--keep", "nan"], "share in (0, 1]"),
    "keep -3": (["--keep", "-3"], "at least 1"),
    "keep word": (["--keep", "many"], "not a number"),
    "method": (["--method", "zooo"], "did you mean 'zoo'"),
    "model": (["--model", "nobody/nothing"], "cannot load model"),
    "dtype": (["--dtype", "float8"], "choose one of"),
    "device": (["--device", "toaster"], "use auto, cpu or cuda"),
    "device without data": (["--device", "meta"], "no device 'meta'"),
    "save in nowhere": (["--save", "nowhere/out.png"], "does not exist; create it"),
    "save on a folder": (["--save", "."], "is a folder"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_exit_code_two(command, photo, kind):
    arguments, message = BAD[kind]
    code, out, err = command("ask", *arguments)
    assert code == 2 and out == ""
    assert message in err and err.count("\n") == 1 and "Traceback" not in err


def test_a_cut_jpeg(command, photo):
    photo.write_bytes(photo.read_bytes()[:2000])
    code, _, err = command("ask", photo, QUESTION)
    assert code == 2 and "cut short" in err and err.count("\n") == 1


def test_a_text_only_model(command, tmp_path):
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "text")
    code, _, err = command("ask", "--model", tmp_path / "text")
    assert code == 2 and "text-only model" in err and err.count("\n") == 1


def corrupt(folder):
    (folder / "model.safetensors").write_bytes(b"not weights")


def cut(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def without_processor(folder):
    (folder / "tokenizer.json").unlink()


def not_json(folder):
    (folder / "config.json").write_text("{")


def deeper(folder):
    edit_config(folder, lambda config: config["text_config"].update(num_hidden_layers=9))


def wider(folder):
    edit_config(folder, lambda config: config["text_config"].update(hidden_size=128))


def with_code(folder):
    edit_config(folder, lambda config: config.update(model_type="own", auto_map={"AutoConfig": "own.Own"}))
    (folder / "own.py").write_text("from pathlib import Path\nPath('ran').touch()\n")


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


BAD_CHECKPOINTS = {
    corrupt: "must be whole",
    cut: "must be whole",
    without_weights: "no file named model.safetensors",
    pickled: "no file named model.safetensors",
    without_processor: "cannot load",
    not_json: "not a valid JSON",
    deeper: "lacks 45 weights",
    wider: "fit config.json",
    with_code: "custom code",
}


@pytest.mark.parametrize("spoil", BAD_CHECKPOINTS, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_checkpoint_is_one_line_and_exit_code_two(command, tmp_path, spoil):
    folder = tmp_path / "checkpoint"
    shutil.copytree(BUNDLED_FOLDER, folder)
    spoil(folder)
    code, out, err = command("ask", "--model", folder)
    assert code == 2 and out == ""
    assert BAD_CHECKPOINTS[spoil] in err and err.count("\n") == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(command):
    code, _, err = command("ask", "--device", "cuda")
    assert code == 2 and "no device 'cuda'" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission(command, tmp_path):
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(stat.S_IRUSR | stat.S_IXUSR)
    code, _, err = command("ask", "--save", tmp_path / "locked" / "out.png")
    assert code == 2 and "permission" in err


def test_an_interrupt_is_quiet(command, monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    assert command("ask") == (130, "", "")
