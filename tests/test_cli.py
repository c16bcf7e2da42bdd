"""The command line as a user meets it: what it prints, writes and refuses."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import stat
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

import zooprune
import zooprune.asking
from zooprune import cli, list_pruners
from zooprune.bundled import BUNDLED_FOLDER
from zooprune.cli import terminal
from zooprune.cli.requests import parse_keep
from zooprune.evaluation.report import times
from zooprune.policy import Policy
from zooprune.pruners import pruner_class

QUESTION = "Is there a dog?"


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the command line inside an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zooprune", *map(str, arguments)])
        # The consoles keep the streams of the moment they were made.
        monkeypatch.setattr(terminal, "_out", Console(file=sys.stdout, width=80))
        monkeypatch.setattr(terminal, "_err", Console(file=sys.stderr, width=80))
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


def test_the_version(command):
    assert command("--version") == (0, f"zooprune {zooprune.__version__}\n", "")


@pytest.mark.parametrize("name", [None, "ask", "eval", "calibrate", "tune", "batch", "bench", "app", "gallery"])
def test_help_has_a_short_name_and_fits_80_columns(command, name):
    code, out, err = command(*([] if name is None else [name]), "-h")
    assert code == 0 and err == "" and "--help" in out and "Usage: zooprune" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    for phrase in ("to be had", "broken off", "goes on", "may be repeated", "when left out", "Whose"):
        assert phrase not in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_completion_for_every_shell(command, monkeypatch, shell):
    # Typer looks for a shell among the parents of the process, and there may be none.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    code, out, _ = command("--show-completion", shell)
    assert code == 0 and "_ZOOPRUNE_COMPLETE" in out


def test_completion_completes_commands(command, monkeypatch):
    monkeypatch.setenv("_ZOOPRUNE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "zooprune ca")
    monkeypatch.setenv("COMP_CWORD", "1")
    code, out, _ = command()
    assert code == 0 and out.split() == ["calibrate"]


def test_costs_are_told_as_factors_above_one(command):
    _, out, _ = command("ask")
    assert (
        "9.0x fewer" in out and "x smaller" in out and re.search(r"total ms .* [\d.]+x (faster|slower)|the same", out)
    )
    assert "ratio" not in out
    assert [times(*pair) for pair in ((3.1, 1), (1, 2), (1, 1.01), (0, 1), (1200, 1))] == [
        "3.1x faster", "2.0x slower", "the same", "", "1,200.0x faster"
    ]  # fmt: skip
    assert times(1, 2, "fewer", "more") == "2.0x more"


def test_several_images_are_shown_together(command, photo, tmp_path):
    shutil.copy(photo, tmp_path / "other.jpg")
    arguments = ("ask", "photo.jpg", "other.jpg", "is there a ball in both images?", "--save", "new/deep/both.webp")
    code, out, err = command(*arguments, "--json")
    told = json.loads(out)
    assert code == 0 and err == "" and told["images"] == ["photo.jpg", "other.jpg"]
    assert told["full"]["visual_tokens"] == 2 * 576 and [len(kept) for kept in told["pruned"]["kept"]] == [64, 64]
    with Image.open(tmp_path / "new" / "deep" / "both.webp") as both:
        assert both.format == "WEBP" and both.height > both.width / 2


@pytest.mark.parametrize("suffix, form", [("jpg", "JPEG"), ("JPEG", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_the_end_of_the_name_chooses_the_format(command, photo, tmp_path, suffix, form):
    assert command("ask", photo, QUESTION, "--save", f"out.{suffix}")[0] == 0
    with Image.open(tmp_path / f"out.{suffix}") as picture:
        assert picture.format == form


@pytest.fixture
def photos(photo, tmp_path):
    """A folder with two photographs, a broken one, and a text."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.jpg", "c.jpg"):
        shutil.copy(photo, folder / name)
    (folder / "b.jpg").write_bytes(photo.read_bytes()[:2000])
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_has_a_row_per_image_and_a_total(command, photos, tmp_path):
    code, out, err = command("ask", "photos", QUESTION, "--save", "kept")
    assert code == 0 and "not asked: photos/b.jpg cannot be read" in err and err.count("\n") == 1
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert (
        "576 to 64" in lines["a.jpg"] and "not asked, see below" in lines["b.jpg"] and "1,152 to 128" in lines["total"]
    )
    assert (
        "of 2 same" in lines["total"] and "pictures: kept" in out and all(len(line) <= 80 for line in out.splitlines())
    )
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["a.jpg.png", "c.jpg.png"]
    code, out, err = command("ask", "photos", QUESTION, "--json")
    told = json.loads(out)
    assert code == 0 and err == "" and told["method"] == "zoo"
    assert [result["images"] for result in told["results"]] == [["photos/a.jpg"], ["photos/b.jpg"], ["photos/c.jpg"]]
    assert "cannot be read" in told["results"][1]["error"] and told["results"][2]["full"]["visual_tokens"] == 576


def test_a_folder_of_broken_images_is_an_error(command, photos):
    for name in ("a.jpg", "c.jpg"):
        (photos / name).write_bytes((photos / "b.jpg").read_bytes())
    code, out, err = command("ask", "photos", QUESTION)
    assert code == 2 and out == "" and "no question could be asked; the first one: photos/a.jpg cannot be read" in err


def test_seeds(command, photo):
    kept = [
        json.loads(command("ask", photo, QUESTION, "--method", "random", "--seed", seed, "--json")[1])["pruned"]["kept"]
        for seed in ("1", "1", "2")
    ]
    assert kept[0] == kept[1] != kept[2]


def test_without_arguments_it_asks_about_the_bundled_scene(command, tmp_path):
    code, out, err = command("ask")
    assert code == 0 and err == ""
    assert all(len(line) <= 80 for line in out.splitlines())
    for word in ("answer", "576", "64", "prefill GFLOPs", "KV cache MB", "encode ms", "score ms", "select ms",
                 "prefill ms", "decode ms", "total ms", "right answer", "picture: answer.png"):  # fmt: skip
        assert word in out
    with Image.open(tmp_path / "answer.png") as picture:
        assert picture.format == "PNG" and picture.width > 1000


def test_json_is_all_that_is_printed(command, photo, tmp_path):
    code, out, err = command("ask", photo, QUESTION, "--keep", "0.25", "--method", "random", "--json")
    result = json.loads(out)
    assert code == 0 and err == ""
    assert result["question"] == QUESTION and result["images"] == [str(photo)]
    assert (result["model"], result["method"], result["keep"]) == ("bundled", "random", 0.25)
    assert (result["dropped"], result["positions"]) == ("stand in", "auto")
    assert (result["dtype"], result["device"]) == ("float32", "cuda:0" if torch.cuda.is_available() else "cpu")
    assert result["versions"]["zooprune"] == zooprune.__version__ and "torch" in result["versions"]
    assert result["full"]["total"] == sum(result["full"]["seconds"].values())
    assert result["full"]["visual_tokens"] == 576 and result["pruned"]["visual_tokens"] == 144
    assert [len(kept) for kept in result["pruned"]["kept"]] == [144]
    assert result["full"]["prefill_flops"] > result["pruned"]["prefill_flops"] > 0
    assert set(result["pruned"]["seconds"]) == {"encode", "score", "select", "assign", "prefill", "decode"}
    assert result["picture"] is None and not (tmp_path / "answer.png").exists()


def test_positions_are_those_that_were_asked_for(command, photo, monkeypatch):
    policies = []
    original = zooprune.asking.ask

    def noted(model, processor, images, question, plan, **options):
        policies.append(plan.policy)
        return original(model, processor, images, question, plan, **options)

    monkeypatch.setattr(zooprune.asking, "ask", noted)
    code, out, _ = command("ask", photo, QUESTION, "--positions", "original", "--dropped", "mean", "--json")
    assert code == 0 and json.loads(out)["positions"] == "original"
    assert policies == [Policy(positions="original", dropped="mean")]


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
    assert code == 0 and [row["name"] for row in rows] == sorted(list_pruners())
    code, out, _ = command("methods")
    assert code == 0 and all(name in out for name in list_pruners())
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize("name", list_pruners())
def test_a_method_is_shown_in_full(command, name):
    code, out, err = command("methods", name)
    assert code == 0 and err == "" and out.startswith(f"{name}: ")
    assert all(len(line) <= 80 for line in out.splitlines())
    assert all(field.name in out for field in dataclasses.fields(pruner_class(name)))
    (row,) = json.loads(command("methods", name, "--json")[1])
    assert row["name"] == name and row["options"][0]["name"] == "keep"
    assert (row["formula"] or "") in out


def test_signs_that_the_output_cannot_encode_are_printed_as_codes(command, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    assert command("methods", "norm")[0] == 0
    assert b"score_i = \\u2016z_i\\u2016" in written.getvalue()


def test_an_unknown_method_is_one_line_and_exit_code_two(command):
    code, out, err = command("methods", "zooo")
    assert code == 2 and out == "" and "did you mean 'zoo'" in err and err.count("\n") == 1


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
    "folder without images": (["empty", QUESTION], "empty holds no image file"),
    "folder among images": (["photo.jpg", "empty", QUESTION], "is a folder; give one image file"),
    "address": (["https://example.org/photo.jpg", QUESTION], "is an address on the web, and only local files are read"),
    "empty question": (["photo.jpg", " "], "the question is empty"),
    "no question after two": (["photo.jpg", "photo.jpg"], "give a question"),
    "no seed": (["--method", "divprune", "--seed", "3"], "divprune has no option seed"),
    "model folder": (["--model", "./none"], "the model's folder ./none does not exist"),
    "model file": (["--model", "photo.jpg"], "the model's folder photo.jpg is a file"),
    "model address": (["--model", "https://example.org/a/b"], "is an address on the web; give the model's id"),
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
    "save in a file": (["--save", "photo.jpg/out.png"], "photo.jpg is a file"),
    "save as text": (["--save", "out.txt"], "ends in none of .png, .jpg, .jpeg, .webp"),
    "save over the image": (["photo.jpg", QUESTION, "--save", "./photo.jpg"], "would replace the image that is read"),
    "save over a linked image": (["photo.jpg", QUESTION, "--save", "link.png"], "would replace the image that is read"),
    "save among the images": (["photos", QUESTION, "--save", "photos"], "is the folder of the images"),
    "save a folder in a file": (["photos", QUESTION, "--save", "photo.jpg"], "is a file; give a folder"),
    "save on a folder": (["--save", "."], "is a folder"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_exit_code_two(command, photo, tmp_path, kind):
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    shutil.copy(photo, tmp_path / "photos")
    (tmp_path / "link.png").symlink_to(photo)
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


def of_wrong_types(folder):
    edit_config(folder, lambda config: config["text_config"].update(hidden_size="wide"))


def without_heads(folder):
    edit_config(folder, lambda config: config["vision_config"].update(num_attention_heads=0))


def without_text_heads(folder):
    edit_config(folder, lambda config: config["text_config"].update(num_attention_heads=0, head_dim=None))


def with_a_word_for_a_part(folder):
    edit_config(folder, lambda config: config.update(vision_config="clip"))


def with_an_unknown_part(folder):
    edit_config(folder, lambda config: config["text_config"].update(model_type="nothing"))


def with_a_list(folder):
    (folder / "config.json").write_text("[]")


def of_unknown_layer(folder):
    edit_config(folder, lambda config: config["text_config"].update(hidden_act="nothing"))


def with_an_empty_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def with_an_odd_processor(folder):
    for path in folder.glob("*processor*config.json"):
        path.write_text('{"image_processor_type": 3, "processor_class": "LlavaProcessor", "size": "large"}')


ODD_CHECKPOINTS = [
    of_wrong_types, without_heads, without_text_heads, with_a_word_for_a_part, with_an_unknown_part, with_a_list,
    of_unknown_layer, with_an_empty_tokenizer, with_an_odd_processor,
]  # fmt: skip

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


@pytest.mark.parametrize("spoil", ODD_CHECKPOINTS, ids=lambda spoil: spoil.__name__)
def test_an_odd_checkpoint_is_one_line_and_exit_code_two(command, tmp_path, spoil):
    """Whatever transformers raises about it, none of which is a ValueError by rights."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(BUNDLED_FOLDER, folder)
    spoil(folder)
    code, out, err = command("ask", "--model", folder)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert str(folder) in err and "cannot load" in err and "()" not in err
    code, out, err = command("models", folder)
    assert code == 0 or (code == 2 and out == "" and err.count("\n") == 1)


def test_a_question_is_shown_as_it_is(command, photo, tmp_path):
    question = "what is in the [/top] [red]left?\x1b[31m\a"
    code, out, err = command("ask", photo, question, "--save", "[bold].png")
    assert code == 0 and err == ""
    assert "what is in the [/top] [red]left?\\x1b[31m\\x07" in out and "\x1b" not in out and "\a" not in out
    assert "picture: [bold].png" in out and (tmp_path / "[bold].png").exists()
    code, _, err = command("ask", "[/none]\x1b.png", question)
    assert code == 2 and "[/none]\\x1b.png does not exist" in err


def test_a_mark_of_the_processor_in_a_question_is_refused(command, photo):
    code, _, err = command("ask", photo, "what is an <image>?")
    assert code == 2 and "the question holds '<image>'" in err and err.count("\n") == 1


def test_faults_of_the_program_are_not_hidden(command, monkeypatch, tmp_path):
    def fails(error):
        def app(**_):
            error()

        monkeypatch.setattr("zooprune.cli.commands.app", app)

    fails(lambda: len(3))
    with pytest.raises(TypeError):
        command("ask")
    fails(lambda: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError):
        command("ask")
    fails(lambda: np.ones(2) + np.ones(3))
    with pytest.raises(ValueError, match="broadcast"):
        command("ask")
    fails(lambda: parse_keep("many"))
    assert command("ask")[0] == 2
    fails(lambda: (tmp_path / "nowhere").read_text())
    assert command("ask")[0] == 2


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
    def interrupted(**_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zooprune.cli.commands.app", interrupted)
    assert command("ask") == (130, "", "")
