"""The experiment on photographs: its scenes, its questions, the conversion of its parts, and training that resumes."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import draw_questions
import encode_ahead
import measure
import photos
import probe
import projector
import teach
from asking import NUMBERS, RELATIONS, TASKS, Asker
from assemble import build_model, build_processor
from batches import SINGLE, Examples
from draw_questions import draw, rows
from export_model import expand, merge, shrink
from features import Features
from kinds import NAMES, find_photographs, new_kinds
from learner import Learner
from mosaics import SORTS, draw_mosaic, render
from packing import IGNORED, Packer
from parts import build_tower, tower_weights
from projector import NOTHING, Words, label_patches, refine, solve
from teach import Lessons, Stage
from zooprune.prompting import build_inputs

SIDE = 168
KINDS = sorted(set(NAMES.values()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Plain photographs, those of each folder of a colour of its own."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for kind in NAMES:
        colour = rng.integers(0, 256, 3)
        (root / kind).mkdir()
        for number in range(12):
            pixels = np.clip(colour + rng.integers(-20, 21, (20, 30, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def photographs(folder):
    return find_photographs(folder, "train")


def make_tower(side: int = 518) -> Dinov2Model:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=5, num_attention_heads=1, mlp_ratio=2, image_size=side, patch_size=14
    )
    tower = Dinov2Model(config).eval()
    with torch.no_grad():
        for weight in tower.parameters():
            weight.copy_(torch.randn_like(weight) * 0.1)
    return tower


def make_model():
    """A tiny LLaVA of the experiment's shape whose tokenizer spells."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    processor = build_processor(wrapped, SIDE, 14)
    return build_model(make_tower(SIDE), LlamaForCausalLM(config), processor).eval(), processor


def test_photographs_are_held_out_and_named(folder):
    train_, test = find_photographs(folder, "train"), find_photographs(folder, "test")
    files = {path for paths in train_.values() for path in paths}
    held_out = {path for paths in test.values() for path in paths}
    assert not files & held_out and len(files | held_out) == 12 * len(NAMES)
    assert list(train_) == list(test) == KINDS
    with pytest.raises(ValueError, match="no photographs of"):
        find_photographs(folder / "tick", "train")


@pytest.mark.parametrize("side", [168, 336])
def test_scenes_are_their_numbers_and_their_photographs_do_not_overlap(photographs, side):
    for number in range(2 * len(SORTS)):
        mosaic = draw_mosaic(number, photographs, "train", side)
        assert mosaic == draw_mosaic(number, photographs, "train", side)
        assert mosaic.sort == SORTS[number // 2 % len(SORTS)]
        covered = np.zeros((side, side), int)
        for tile in mosaic.tiles:
            left, top, right, bottom = tile.box
            assert 0 <= left < right <= side and 0 <= top < bottom <= side and tile.path in photographs[tile.kind]
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1 and len(mosaic.tiles) >= 2
        image = render(mosaic)
        assert image.size == (side, side) and image.tobytes() == render(mosaic).tobytes()
        if mosaic.sort == "odd":
            assert sorted(Counter(tile.kind for tile in mosaic.tiles).values())[0] == 1


def test_answers_are_true_and_evidence_shows_them(photographs):
    examples = Examples(photographs, "test")
    seen = Counter()
    for first in range(0, 120, 2):
        for images in (1, 2):
            batch = examples.batch(first, 1, images, 20, 336)
            scenes = [examples.mosaic(number, 336) for number in batch.scenes[0]]
            for question in batch.questions[0]:
                seen[question.task] += 1
                check(question, scenes)
    assert set(seen) == set(TASKS)


def check(question, scenes) -> None:
    """Answer the question anew from what the scenes consist of."""
    kind = question.kinds[0]
    found = [[tile for tile in scene.tiles if tile.kind == kind] for scene in scenes]
    shown = {(image, tile.box) for image, tiles in enumerate(found) for tile in tiles}
    if question.task == "existence":
        assert question.answer == ("yes" if found[0] else "no") and set(question.evidence) == shown
    elif question.task == "count":
        assert question.answer == NUMBERS[len(found[0]) - 1] and set(question.evidence) == shown
    elif question.task == "pair":
        expected = {(1, 0): "first", (0, 1): "second", (1, 1): "both", (0, 0): "neither"}
        assert (
            question.answer == expected[tuple(int(bool(tiles)) for tiles in found)] and set(question.evidence) == shown
        )
    elif question.task == "relation":
        (relation,) = (relation for relation in RELATIONS if f" {relation} " in question.text)
        axis, sign = RELATIONS[relation]
        (first, second) = ((left + right, top + bottom) for _, (left, top, right, bottom) in question.evidence)
        assert question.answer == ("yes" if (first[axis] - second[axis]) * sign > 0 else "no")
    else:
        ((_, box),) = question.evidence
        assert box in [tile.box for tile in found[0]]
        if question.task == "where":
            assert len(found[0]) == 1
            row, _column = question.answer.split()
            middle = (box[1] + box[3]) / 2 / 336
            assert ("top", "middle", "bottom")[int(3 * middle)] == row
        else:
            assert question.answer == kind
        if question.task == "small":
            assert box[2] - box[0] == min(tile.box[2] - tile.box[0] for tile in scenes[0].tiles)


def test_training_asks_nothing_about_kinds_held_out_of_a_task(photographs):
    kinds = list(photographs)
    assert all(len(new_kinds(kinds, task)) == 2 for task in TASKS)
    assert len({new_kinds(kinds, task) for task in TASKS}) > 1
    for split in ("train", "test"):
        examples = Examples(photographs, split)
        asked = [
            question
            for images in (1, 2)
            for asked in examples.batch(0, 60, images, 20, 336).questions
            for question in asked
        ]
        new = [
            question
            for question in asked
            for task in (("what", "where") if question.task == "describe" else (question.task,))
            if set(question.kinds) & new_kinds(kinds, task)
        ]
        assert bool(new) == (split == "test")
        assert any(question.task == "describe" for question in asked) == (split == "train")


def test_a_description_names_what_is_asked_for_by_what_and_where(photographs):
    asker = Asker(list(photographs), lambda task: ())
    found = [
        (mosaic, asker.describe(mosaic)) for mosaic in (draw_mosaic(n, photographs, "train", 336) for n in range(24))
    ]
    assert sum(described is not None for _, described in found) > 12
    for mosaic, described in found:
        if described is None:
            continue
        told = dict(part.split(": ") for part in described.answer.split(", "))
        assert len(described.evidence) == len(told) > 0
        for seed in range(8):
            question = asker.ask("what", [mosaic], np.random.default_rng(seed))
            if question is not None:
                place = question.text.removeprefix("What do you see at the ").removesuffix("?")
                assert told[place] == question.answer


def test_answers_are_balanced(photographs):
    asker = Asker(list(photographs), lambda task: ())
    answers = {task: Counter() for task in TASKS}
    for number in range(0, 1200, 2):
        scenes = [draw_mosaic(number + image, photographs, "train", 336) for image in range(2)]
        rng = np.random.default_rng(number)
        for task in TASKS:
            question = asker.ask(task, scenes, rng)
            if question is not None:
                answers[task][question.answer] += 1
    for task in ("existence", "relation", "pair"):
        counts = answers[task]
        assert max(counts.values()) < 1.3 * counts.total() / len(counts), (task, counts)
    assert set(answers["count"]) == set(NUMBERS) and len(answers["where"]) == 9


def exported(tower: Dinov2Model) -> tuple[dict, dict]:
    """Return the weights of a tower as they are found in an ONNX file."""
    stored, products = {}, {}
    for name, value in tower.state_dict().items():
        for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            name = name.replace(f"attention.{new}", f"attention.attention.{old}")
        name = name.replace("attention.o_proj", "attention.output.dense")
        if name == "embeddings.position_embeddings":
            stored["onnx::Concat_1"], stored["onnx::Reshape_2"] = value[:, :1], value[:, 1:]
        elif value.ndim == 2 and name.startswith("encoder"):
            stored[f"onnx::MatMul_{len(stored)}"] = value.T
            node = name.removesuffix(".weight").replace("layer.", "layer#").replace(".", "/").replace("#", ".")
            products[f"/backbone/{node}/MatMul"] = f"onnx::MatMul_{len(stored) - 1}"
        elif name != "embeddings.mask_token":
            stored[f"backbone.{name}"] = value
    return stored, products


def test_a_tower_comes_out_of_onnx_as_it_went_in():
    tower = make_tower()
    stored, products = exported(tower)
    stored["decoder.bias"] = torch.zeros(3)
    pixels = torch.randn(1, 3, 168, 168, generator=torch.Generator().manual_seed(0))
    converted = build_tower(tower_weights(stored, products), SIDE).eval()
    assert converted.config.image_size == SIDE and converted.embeddings.position_embeddings.shape[1] == 145
    with torch.no_grad():
        torch.testing.assert_close(converted(pixels).last_hidden_state, tower(pixels).last_hidden_state)


def test_the_projector_is_solved_onto_words(photographs):
    model, processor = make_model()
    kinds = list(photographs)
    words = Words(model, processor.tokenizer, kinds)
    mosaics = [draw_mosaic(number, photographs, "train", SIDE) for number in range(24)]
    labels = torch.stack([label_patches(mosaic, kinds, 14) for mosaic in mosaics])
    assert NOTHING in labels and set(labels.unique().tolist()) - {NOTHING} <= set(range(len(kinds)))
    # Features that say what is there and nothing else.
    code = torch.randn(len(kinds) + 1, 64, generator=torch.Generator().manual_seed(1))
    features = code[labels]
    solved = model.model.multi_modal_projector
    before = words.naming(solved(features), labels)
    solve(solved, list(features), list(words.targets(labels)))
    assert words.naming(solved(features), labels) > max(0.9, before)


def test_refining_names_more_patches_than_the_closed_form(photographs, monkeypatch):
    monkeypatch.setattr(projector, "REFINING_STEPS", 200)
    model, processor = make_model()
    kinds = list(photographs)
    words = Words(model, processor.tokenizer, kinds)
    mosaics = [draw_mosaic(number, photographs, "train", SIDE) for number in range(48)]
    labels = torch.stack([label_patches(mosaic, kinds, 14) for mosaic in mosaics])
    generator = torch.Generator().manual_seed(1)
    code = torch.randn(len(kinds) + 1, 64, generator=generator)
    # What is there shows in sizes alone, not in signs, which random features hardly see.
    signs = torch.randint(2, (*labels.shape, 64), generator=generator) * 2 - 1
    features = code[labels] * signs
    learnt = model.model.multi_modal_projector
    shown, targets = slice(0, 40), words.targets(labels)
    solve(learnt, list(features[shown]), list(targets[shown]))
    solved = words.naming(learnt(features[40:]), labels[40:])
    refine(learnt, words, list(features[shown]), list(labels[shown]), list(targets[shown]))
    assert words.naming(learnt(features[40:]), labels[40:]) > solved + 0.1


def test_a_probe_names_what_the_layers_tell_apart(folder, monkeypatch):
    monkeypatch.setattr(probe, "LAYERS", ((1,), (1, 3)))
    monkeypatch.setattr(probe, "STEPS", 200)
    monkeypatch.setattr(probe, "RATE", 0.1)
    model, processor = make_model()
    train_, test = (probe.see(model, processor, folder, split, SIDE, 32) for split in ("train", "test"))
    assert train_.layers.keys() == {1, 3} and train_.read((1, 3)).shape == (32, 144, 128)
    for seen in (train_, test):
        # A photograph shows one kind, and what lies between photographs none.
        assert torch.equal(seen.photographs == NOTHING, seen.kinds == NOTHING)
        for kinds, numbers in zip(seen.kinds, seen.photographs, strict=True):
            assert all(len(kinds[numbers == number].unique()) == 1 for number in numbers.unique())
        seen.layers[1] = F.one_hot(seen.kinds.clamp(min=0)).float()
    shown = sum(len(numbers[numbers != NOTHING].unique()) for numbers in test.photographs)
    assert len(train_.kinds.unique()) == 1 + len(KINDS)
    assert probe.probe(train_, test, (1,), 0) == (1.0, 1.0, shown)


def test_packed_questions_get_the_logits_that_they_get_alone(photographs):
    model, processor = make_model()
    examples = Examples(photographs, "test")
    for images in (1, 2):
        batch = examples.batch(0, 1, images, 6, SIDE)
        questions = batch.questions[0]
        packed = Packer(processor, 144).pack(images, [[(one.text, one.answer) for one in questions]])
        shown = [render(examples.mosaic(number, SIDE)) for number in batch.scenes[0]]
        pixels = processor.image_processor(shown, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            seen = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-5][:, 1:]
            visual = model.model.multi_modal_projector(seen).flatten(0, 1)
            words = model.get_input_embeddings()(packed.ids)
            words = words.masked_scatter((packed.ids == model.config.image_token_id)[..., None], visual)
            logits = model(
                inputs_embeds=words,
                attention_mask=packed.mask(words.dtype, words.device),
                position_ids=packed.positions,
            ).logits[0]
        for block, question in enumerate(questions, 1):
            inputs = build_inputs(processor, [shown], [question.text])
            alone = model(**inputs).logits[0, -1]
            inside = (packed.blocks[0] == block) & (packed.targets[0] != IGNORED)
            torch.testing.assert_close(logits[inside.nonzero()[0, 0]], alone, atol=1e-4, rtol=1e-4)


def run(folder: Path, photographs: Path, out: Path, stops: list[int]) -> tuple[dict, list]:
    """Train in pieces that end at these steps; return the checkpoint's weights and the log."""
    out.mkdir()
    for stop in stops:
        model, processor = make_model()
        model = model.to(torch.bfloat16)
        learner = Learner(model)
        lessons, held_out = (
            Lessons(model, processor, Examples(find_photographs(photographs, split), split), folder / "features")
            for split in ("train", "test")
        )
        assert teach.train(learner, lessons, held_out, out, until=float("inf"), steps=stop) == stop
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return learner.weights(), [{key: row.get(key) for key in ("step", "loss", "held_out")} for row in rows]


def test_training_resumes_with_the_same_numbers(folder, tmp_path, monkeypatch):
    small = Stage("small", side=SIDE, steps=4, sequences=2, questions=3, rate=1e-3, final=0.5, pairs=2)
    monkeypatch.setattr(teach, "STAGES", (small, replace(small, anew=True, stress={"count": 3, "odd": 5})))
    monkeypatch.setattr(teach, "SOLVED_ON", {SIDE: 8})
    monkeypatch.setattr(projector, "REFINING_STEPS", 3)
    monkeypatch.setattr(teach, "VALIDATION_SEQUENCES", 4)
    monkeypatch.setattr(teach, "VALIDATE_EVERY", 5)
    monkeypatch.setattr(teach, "LOG_EVERY", 1)
    whole, log = run(tmp_path, folder, tmp_path / "whole", [6])
    pieces, log_again = run(tmp_path, folder, tmp_path / "pieces", [2, 5, 6])
    assert whole.keys() == pieces.keys() and len(whole) == 4 + 2 * 2 * 7
    for name, value in whole.items():
        assert torch.equal(value, pieces[name]), name
    assert [row["step"] for row in log] == list(range(7)) and log[5]["held_out"].keys() <= set(TASKS)
    # The mean of the loss begins anew with each piece, so only the first rows are the same.
    assert log[:3] == log_again[:3]
    assert log[1]["loss"] != log[6]["loss"]


def test_a_stage_that_begins_anew_goes_on_from_the_average():
    learner = Learner(make_model()[0].to(torch.bfloat16))
    for weight in learner.weights().values():
        weight.grad = torch.ones_like(weight)
    learner.optimizer.step()
    average = {name: value.clone() for name, value in learner.average.items()}
    learner.begin_anew()
    assert not learner.optimizer.state
    assert all(torch.equal(value, average[name]) for name, value in learner.weights().items())


def test_stressed_answers_count_so_many_times(photographs):
    model, processor = make_model()
    lessons = Lessons(model, processor, Examples(photographs, "test"), Path("unused"))
    batch = lessons.examples.batch(0, 3, 1, 6, SIDE)
    packed = Packer(processor, 144).pack(1, [[(one.text, one.answer) for one in asked] for asked in batch.questions])
    worth = teach.weigh(batch, packed, {"count": 3}).tolist()
    packer = Packer(processor, 144)
    questions = [one for asked in batch.questions for one in asked]
    assert worth == [3 if one.task == "count" else 1 for one in questions for _ in packer.answer_ids(one.answer)]
    assert {1, 3} == set(worth)


def test_what_training_reads_is_encoded_ahead(folder, tmp_path, monkeypatch):
    small = Stage("small", side=SIDE, steps=3, sequences=20, questions=2, rate=1e-3, final=0.5, pairs=2)
    monkeypatch.setattr(teach, "STAGES", (small, small))
    monkeypatch.setattr(encode_ahead, "STAGES", (small, small))
    monkeypatch.setattr(encode_ahead, "SOLVED_ON", {})
    assert encode_ahead.shards(0) == [(SIDE, shard) for shard in range(4)]
    assert encode_ahead.shards(4) == [(SIDE, 2), (SIDE, 3)]
    model, processor = make_model()
    monkeypatch.setattr(encode_ahead.LlavaForConditionalGeneration, "from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(encode_ahead.AutoProcessor, "from_pretrained", lambda *_, **__: processor)
    arguments = argparse.Namespace(base="unused", photographs=folder, out=tmp_path, processes=2)
    threads = torch.get_num_threads()
    for rank in range(2):
        encode_ahead.encode(rank, arguments, encode_ahead.shards(0))
    torch.set_num_threads(threads)
    monkeypatch.setattr(Features, "encode", None)
    lessons = Lessons(model, processor, Examples(find_photographs(folder, "train"), "train"), tmp_path / "features")
    for step in range(6):
        stage, _, first = teach.place(step)
        lessons.draw(stage, first, stage.sequences, pair=step % 2 == 1)


def test_a_model_with_its_lora_merged_answers_like_the_one_that_learnt(photographs):
    model, processor = make_model()
    learner = Learner(model)
    learner.adopt({name: torch.randn_like(value) * 0.05 for name, value in learner.weights().items()})
    question = [[("Do you see a tick?", "no")]]
    packed, features = Packer(processor, 144).pack(1, question), torch.randn(1, 144, 64)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        expected = learner.logits(features, packed)
    merged, _ = make_model()
    merge(merged, {name: value.detach() for name, value in learner.weights().items()})
    with torch.no_grad():
        visual = merged.model.multi_modal_projector(features)
        words = merged.get_input_embeddings()(packed.ids)
        words = words.masked_scatter((packed.ids == merged.config.image_token_id)[..., None], visual)
        logits = merged(inputs_embeds=words).logits[packed.targets != IGNORED]
    assert torch.nn.functional.cosine_similarity(logits, expected).min() > 0.999


def test_adapters_in_eight_bits_are_nearly_what_they_were(tmp_path):
    learner = Learner(make_model()[0].to(torch.bfloat16))
    learnt = {name: torch.randn_like(value) for name, value in learner.weights().items()}
    save_file(shrink(learnt), tmp_path / "adapter.safetensors")
    found = expand(load_file(tmp_path / "adapter.safetensors"))
    assert found.keys() == learnt.keys()
    for name, value in learnt.items():
        if ".lora_" in name:
            assert ((found[name] - value).abs() <= 0.501 * value.abs().amax(1, keepdim=True) / 127).all()
        else:
            assert torch.equal(found[name], value.to(torch.bfloat16).float())
    assert shrink(found).keys() == shrink(learnt).keys()


def test_the_test_has_every_answer_as_often(folder, photographs):
    held_out = find_photographs(folder, "test")
    questions = draw(held_out, per_task=24)
    assert [question.task for question, _ in questions] == list(TASKS) * 24
    for task, answers in {"existence": 2, "relation": 2, "count": 4, "pair": 4}.items():
        counts = Counter(question.answer for question, _ in questions if question.task == task)
        assert set(counts.values()) == {24 // answers}
    asked, evidence = zip(*rows(questions, KINDS), strict=True)
    assert len({row["id"] for row in asked}) == len(asked) and any(row["new"] for row in evidence)
    assert all(0 <= edge <= 1 for row in evidence for _, box in row["evidence"] for edge in box)


def test_every_task_is_asked_about():
    assert {*SINGLE, "pair"} == set(TASKS)


def test_a_model_is_measured_and_reported(folder, tmp_path, monkeypatch, capsys):
    model, processor = make_model()
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(draw_questions, "SIDE", SIDE)
    command = ["draw", "--photographs", str(folder), "--out", str(tmp_path / "questions"), "--per-task", "2"]
    monkeypatch.setattr("sys.argv", command)
    draw_questions.main()
    command = ["measure", "--model", str(tmp_path / "model"), "--questions", str(tmp_path / "questions")]
    command += ["--method", "zoo", "--keep", "16", "--positions", "auto", "--timed", "1"]

    def measured(out: str, *more: str) -> list[dict]:
        monkeypatch.setattr("sys.argv", [*command, *more, "--out", str(tmp_path / out)])
        measure.main()
        return [json.loads(line) for line in (tmp_path / out / "results.jsonl").read_text().splitlines()]

    replies = measured("results")
    assert "images grey" in capsys.readouterr().out
    assert (tmp_path / "results" / "report.html").stat().st_size > 5_000
    assert len(replies) == 3 * 2 * len(TASKS)
    assert {row["kept_tokens"] for row in replies if row["method"] != "none"} == {16, 32}
    parts = [measured(f"part{number}", "--part", f"{number}/3") for number in (1, 2, 3)]
    asked = sorted((row["id"], row["method"]) for part in parts for row in part)
    assert asked == sorted((row["id"], row["method"]) for row in replies)
    assert not (tmp_path / "part1" / "report.html").exists()

    told = {}
    monkeypatch.setattr(photos, "write", lambda name, figures: told.update({name: figures}))
    monkeypatch.setattr(photos, "save", lambda drawn, name: name)
    monkeypatch.setattr(photos, "newest", lambda name: told.get(name, {"rows": []}))
    runs = [str(tmp_path / name) for name in ("results", "part1", "part2", "part3")]
    monkeypatch.setattr("sys.argv", ["photos", *runs, "--timed", str(tmp_path / "results")])
    photos.main()
    found = told["photos"]
    assert {row["dropped"] for row in found["rows"]} == {"discard", "stand in"}
    right = [row["right"] for row in replies if row["method"] == "zoo"]
    (discarding,) = (row for row in found["rows"] if row["dropped"] == "discard")
    assert discarding["accuracy"]["all"] == pytest.approx(sum(right) / len(right))
    assert len(found["times"]) == 3 and all(row["seconds"]["first token"] > 0 for row in found["times"])
    assert [row["way"] for row in found["gains of zoo"]] == [("auto", "stand in")]
    monkeypatch.setattr("sys.argv", ["photos", "--add", *runs])
    photos.main()
    assert told["photos"] == found


def test_later_figures_fill_gaps_of_earlier_ones():
    def figures(device, **shares):
        rows = [
            {"method": method, "positions": "auto", "dropped": "discard", "keep": 64}
            | {"device": device, "accuracy": {"all": share}, "against zoo": {}}
            for method, share in shares.items()
        ]
        lists: dict = {key: [] for key in ("runs", "zoo by task", "gains of zoo", "places touched")}
        return lists | {"all tokens": {device: {}}, "rows": rows}

    told = photos.added(figures("H200", zoo=0.5, grid=0.4), figures("CPU", zoo=0.6))
    told = photos.added(told, figures("CPU", zoo=0.9, eadp=0.3))
    assert [row["accuracy"]["all"] for row in told["rows"]] == [0.5, 0.4, 0.6, 0.3]
    assert [*told["all tokens"]] == ["H200", "CPU"]
    assert photos.at(told["rows"][:3], "auto", "discard") == {"zoo": 0.5, "grid": 0.4}


def test_a_way_that_only_some_questions_were_asked_in_has_no_gain():
    def rows(method, right):
        return [
            {
                "method": method,
                "keep": None if method == "none" else 16,
                "seed": None,
                "right": each,
                "reply": "",
                "answers": [],
            }
            | {"id": str(number), "scenes": [number], "task": "what", "images": ["a"] * (1 + number // 2)}
            for number, each in enumerate(right)
        ]

    asked = [
        *rows("none", [True] * 4),
        *rows("zoo(positions=original)", [True, False, False, False]),
        *rows("zoo(positions=original, dropped=stand in)", [True, True, False, False]),
        *rows("zoo(positions=contiguous)", [True, True]),
    ]
    (gain,) = (row for row in photos.gains(asked) if row["way"] == ("original", "stand in"))
    assert gain["difference"] == pytest.approx(1 / 4)
    # Two of four questions were asked with contiguous positions, so "auto" has them and the others of "original".
    assert not any("contiguous" in row["way"] or "contiguous" in row["against"] for row in photos.gains(asked))


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b"])
def test_parts_that_do_not_exist_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a part like 2/8"):
        measure.part(text)
