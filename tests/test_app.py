"""What the page does, without a browser and without Gradio."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from rich.console import Console

import real_processors
from zoo_of_models import llava_next
from zooprune import app, cli
from zooprune.app import fragments, pictures
from zooprune.app.pictures import Picture, example_ids, load_example, read_pictures
from zooprune.app.record import as_json, as_png
from zooprune.app.settings import MAX_QUESTION, Settings
from zooprune.app.workbench import REMEMBERED, Workbench
from zooprune.asking import ask
from zooprune.bundled.benchmark import KINDS
from zooprune.cli import terminal
from zooprune.data.images import decode_image
from zooprune.families.llava import Llava
from zooprune.plan import Plan

EXAMPLE = load_example("place-0")
SETTINGS = Settings("bundled", EXAMPLE.question, example=EXAMPLE.id)


@pytest.fixture(scope="module")
def bench():
    return Workbench("bundled", max_new_tokens=4)


def kept(look) -> list[list[list[int]]]:
    return [[image.selection.index.tolist() for image in choice.images] for choice in look.choices]


def noise(name: str, seed: int) -> Picture:
    pixels = torch.randint(0, 256, (90, 120, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return Picture(name, file.getvalue())


def test_a_link_restores_the_settings():
    settings = Settings("bundled", "what is left & right?", "divprune", "zoo", 17, "discard", "original", "sign-0")
    link = dict(pair.split("=") for pair in settings.query().replace("+", " ").replace("%3F", "?").split("&"))
    link["question"] = link["question"].replace("%26", "&")
    assert Settings.of_query(link, SETTINGS) == settings
    assert Settings.of_query({"__theme": "dark"}, SETTINGS) == SETTINGS
    # A link that names no example is to somebody's own pictures.
    assert Settings.of_query({"keep": "8"}, SETTINGS) == dataclasses.replace(SETTINGS, keep=8, example="")


@pytest.mark.parametrize(
    ("link", "sentence"),
    [
        ({"keep": "many"}, "keep=many in the link is no number of tokens; give one, such as 64"),
        ({"keep": "0"}, "keep"),
        ({"method": "zooo"}, "unknown method 'zooo'; did you mean 'zoo'?"),
        ({"method": "none"}, "method none keeps all tokens"),
        ({"dropped": "eaten"}, "dropped='eaten' is not one of"),
        ({"positions": "lost"}, "positions='lost' is not one of auto, contiguous, original"),
        ({"question": " "}, "there is no question; write one"),
        ({"question": "a" * (MAX_QUESTION + 1)}, "shorten it to 2000"),
    ],
)
def test_a_bad_link_gets_a_sentence(link, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Settings.of_query(link, SETTINGS)


def test_there_is_an_example_of_every_task():
    assert [load_example(id).task for id in example_ids()] == list(KINDS)
    assert len(load_example("pair-0").pictures) == 2
    with pytest.raises(ValueError, match="there is no example 'sign-1'; choose one of existence-0"):
        load_example("sign-1")


def test_uploads_that_cannot_be_taken_get_a_sentence(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"no picture")
    assert read_pictures([path]) == (Picture("a.png", b"no picture"),)
    with pytest.raises(ValueError, match=r"a.png is not an image Pillow can read; convert it to PNG or JPEG"):
        read_pictures([path])[0].image()
    with pytest.raises(ValueError, match=r"9 pictures are too many; choose at most 8"):
        read_pictures([path] * 9)
    with pytest.raises(ValueError, match=r"gone.png is no longer on the server; upload it again"):
        read_pictures([tmp_path / "gone.png"])
    monkeypatch.setattr(pictures, "MAX_MEGABYTES", 0)
    with pytest.raises(ValueError, match=r"a.png is larger than 0 MB; scale it down first"):
        read_pictures([path])


def test_a_look_keeps_what_ask_keeps_and_answers_the_same(bench):
    settings = dataclasses.replace(SETTINGS, against="visionzip")
    look = bench.look(settings, EXAMPLE.pictures)
    loaded = bench.load("bundled")
    for choice in look.choices:
        asked = ask(
            loaded.model,
            loaded.processor,
            [EXAMPLE.pictures[0].image()],
            EXAMPLE.question,
            choice.plan,
            max_new_tokens=4,
        )
        assert torch.equal(choice.images[0].selection.index, asked.pruned.images[0].selection.index)
        for own, its in ((choice.cost, asked.pruned), (look.full, asked.full)):
            assert vars(own) == {name: getattr(its, name) for name in vars(own)}
        assert bench.answer(settings, EXAMPLE.pictures, choice.plan).text == asked.pruned.text
    assert bench.answer(settings, EXAMPLE.pictures, None).text == asked.full.text
    assert look.most == 576


def test_the_plan_has_the_chosen_policy(bench):
    settings = dataclasses.replace(SETTINGS, positions="original", dropped="discard")
    (plan,) = bench.plans(settings)
    assert (plan.policy.positions, plan.policy.dropped) == ("original", "discard")


def test_another_budget_neither_encodes_again_nor_asks_the_language_model(bench, monkeypatch):
    mine = [noise("mine.png", 0)]
    bench.look(SETTINGS, mine)
    loaded = bench.load("bundled")

    def forbidden(*_, **__):
        raise AssertionError("not needed")

    monkeypatch.setattr(Llava, "encode", forbidden)
    monkeypatch.setattr(loaded.model.model.language_model, "forward", forbidden)
    # It waits for nobody, either.
    with bench._in_use:
        for keep in (1, 63, 576, 9999):
            look = bench.look(dataclasses.replace(SETTINGS, keep=keep, against="divprune"), mine)
            assert [choice.cost.visual_tokens for choice in look.choices] == [min(keep, 576)] * 2


def test_visitors_at_once_get_what_they_would_get_alone(bench):
    visitors = [(dataclasses.replace(SETTINGS, keep=20 + 5 * seed), [noise("my.png", seed)]) for seed in range(6)]

    def visit(visitor):
        look = bench.look(*visitor)
        return kept(look), bench.answer(*visitor, look.choices[0].plan).text

    together = list(ThreadPoolExecutor(6).map(visit, visitors))
    with bench._noting:
        bench._views.clear()
    assert together == [visit(visitor) for visitor in visitors]


def test_only_so_much_is_remembered(bench):
    for seed in range(REMEMBERED + 2):
        bench._view(bench.load("bundled"), "which?", [noise("a.png", 50 + seed)])
    assert len(bench._views) == REMEMBERED


def test_another_model_takes_the_place_of_the_first(tmp_path, bundled):
    for part in bundled:
        part.save_pretrained(tmp_path / "checkpoint")
    bench = Workbench("bundled", max_new_tokens=4)
    with pytest.raises(ValueError, match="cannot load model 'nowhere'"):
        bench.load("nowhere")
    look = bench.look(SETTINGS, EXAMPLE.pictures)
    other = dataclasses.replace(SETTINGS, model=str(tmp_path / "checkpoint"))
    assert kept(bench.look(other, EXAMPLE.pictures)) == kept(look)
    assert bench.load(other.model) is bench._loaded and bench._loaded.name == other.model
    assert bench.facts(other)["version"] != bench.facts(SETTINGS)["version"]


def test_no_picture_gets_a_sentence(bench):
    with pytest.raises(ValueError, match="there is no picture; upload one or choose an example"):
        bench.look(SETTINGS, ())


def test_all_that_somebody_wrote_is_escaped(bench):
    attack = "<script>alert(1)</script>"
    settings = dataclasses.replace(SETTINGS, question=attack, example="")
    look = bench.look(settings, [noise(f'{attack}".png', 3)])
    answer = bench.answer(settings, look.pictures, None)
    shown = fragments.results(look, {look.key(None): dataclasses.replace(answer, text=attack)}, attack)
    assert "<script" not in shown and '">"' not in shown
    assert shown.count("&lt;script&gt;") >= 4
    assert "&lt;script" in fragments.alert(attack) and "&lt;script" in fragments.status(attack)


def test_answers_are_shown_for_the_question_and_budget_that_they_are_of(bench):
    look = bench.look(SETTINGS, EXAMPLE.pictures)
    answers = {look.key(plan): bench.answer(SETTINGS, EXAMPLE.pictures, plan) for plan in (None, look.choices[0].plan)}
    shown = fragments.results(look, answers, EXAMPLE.answer)
    assert "Right answer" in shown and "not asked yet" not in shown and "Decode" in shown
    assert "9.0x fewer" in shown and "64 of 576" in shown
    other = bench.look(dataclasses.replace(SETTINGS, keep=65), EXAMPLE.pictures)
    assert fragments.results(other, answers, None).count("not asked yet") == 1
    elsewhere = bench.look(dataclasses.replace(SETTINGS, question="what else?"), EXAMPLE.pictures)
    assert "Answer</th>" not in fragments.results(elsewhere, answers, None)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """A model that cuts a picture into tiles, what two methods keep of a picture, and the answers."""
    folder = tmp_path_factory.mktemp("tiled")
    torch.manual_seed(0)
    for part in (llava_next(), real_processors.llava_next()):
        part.save_pretrained(folder)
    bench = Workbench(str(folder), max_new_tokens=2)
    settings = Settings(str(folder), "w5 w6", against="divprune", keep=5)
    look = bench.look(settings, EXAMPLE.pictures)
    plans = (None, look.choices[0].plan)
    return bench, look, {look.key(plan): bench.answer(settings, EXAMPLE.pictures, plan) for plan in plans}


def test_tiles_are_shown_under_the_whole_picture(tiled):
    bench, look, answers = tiled
    shown = fragments.results(look, answers, None)
    for choice in look.choices:
        (report,) = choice.images
        tiles = int((report.positions[report.selection.index, 1] > 0).sum())
        assert f"<figcaption>Whole image: {5 - tiles} of 16 patches kept" in shown
        assert f"<figcaption>2 x 2 tiles: {tiles} of 64 patches kept" in shown
    assert shown.count('class="zoo-pair"') == 4 and "5 of 88" in shown and "Decode" in shown
    assert Image.open(io.BytesIO(as_png(look, answers))).height > 4 * 504
    (_, method) = json.loads(as_json(look, answers, bench.facts(look.settings), bench.max_new_tokens))["methods"]
    assert [len(kept) for kept in method["kept"]] == [5]


def test_a_large_picture_is_cut_by_its_own_size_and_not_by_that_of_its_copy(tiled):
    bench, look, _ = tiled
    file = io.BytesIO()
    Image.new("RGB", (2200, 1100)).save(file, "PNG")
    other = bench.look(look.settings, [Picture("large.png", file.getvalue())])
    assert other.seen[0].size == (1008, 504) and other.sizes == ((2200, 1100),)


def test_tiles_in_unknown_places_get_figures_answers_and_a_sentence_instead_of_drawings(tiled):
    _, look, answers = tiled
    unknown = [
        dataclasses.replace(choice, images=tuple(dataclasses.replace(one, layout=None) for one in choice.images))
        for choice in look.choices
    ]
    look = dataclasses.replace(look, choices=tuple(unknown))
    shown = fragments.results(look, answers, None)
    assert shown.count("This model reads a picture as several tiles, which this page cannot draw") == 2
    assert "<img" not in shown and "5 of 88" in shown and "GFLOPs" in shown and "Decode" in shown
    with pytest.raises(ValueError, match=r"this model reads a picture as several tiles.*download the JSON instead"):
        as_png(look, answers)


def test_the_json_is_enough_to_repeat_a_result(bench, bundled):
    settings = dataclasses.replace(SETTINGS, against="random", keep=30)
    look = bench.look(settings, EXAMPLE.pictures)
    answers = {look.key(choice.plan): bench.answer(settings, EXAMPLE.pictures, choice.plan) for choice in look.choices}
    text = as_json(look, answers, bench.facts(settings), bench.max_new_tokens)
    told = json.loads(text)
    assert told["model"]["name"] == "bundled" and set(told["versions"]) == {"zooprune", "torch", "transformers"}
    (picture,) = told["pictures"]
    image = decode_image(base64.b64decode(picture["base64"]), picture["name"])
    for method in told["methods"]:
        again = ask(
            *bundled, [image], told["question"], Plan.load(method["plan"]), max_new_tokens=told["max_new_tokens"]
        )
        assert [one.selection.index.tolist() for one in again.pruned.images] == method["kept"]
        assert again.pruned.text == method["answer"]


def test_the_picture_shows_every_picture_under_every_method(bench):
    pair = load_example("pair-0")
    one = bench.look(SETTINGS, EXAMPLE.pictures)
    two = bench.look(Settings("bundled", pair.question, against="divprune", example=pair.id), pair.pictures)
    first, second = (Image.open(io.BytesIO(as_png(look, {}))) for look in (one, two))
    assert first.format == "PNG" and second.width == first.width and second.height == 4 * first.height


def test_without_gradio_a_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["zooprune", "app"])
    monkeypatch.setattr(terminal, "_err", Console(file=sys.stderr, width=80))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: zooprune app needs Gradio; run: pip install 'zooprune[app]'\n"
