"""One picture of what every method keeps: what is asked, what is left out, what is drawn."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from test_cli import command, photo  # noqa: F401, they are fixtures
from test_picture import GRID, report, tiled_report
from zoo_of_models import CASES
from zooprune import list_pruners
from zooprune.answering import answer
from zooprune.bundled import demo_scene
from zooprune.evaluation.gallery import choose, hang
from zooprune.picture import _FRAME, _GAP, _GREEN, _MARGIN, _RED, _SMALL, CannotDrawError, Panel, draw_gallery
from zooprune.prompting import build_inputs
from zooprune.pruners import UNPRUNED, register, registry
from zooprune.pruners.random import RandomPrune
from zooprune.tokens import Selection


@pytest.fixture
def for_videos(monkeypatch):
    monkeypatch.setattr(registry, "_known", dict(registry._known))

    @register
    @dataclass(frozen=True)
    class Moving(RandomPrune):
        """Keep what moves."""

        name: ClassVar[str] = "moving"
        modalities: ClassVar = ("video",)


@pytest.mark.slow
def test_every_method_answers_from_one_encoding_as_it_does_by_itself(bundled, monkeypatch):
    model, processor = bundled
    image, question, expected = demo_scene()
    encoded, features = [], model.model.get_image_features
    monkeypatch.setattr(
        model.model, "get_image_features", lambda *given, **named: encoded.append(1) or features(*given, **named)
    )
    pruners, left_out = choose(model, None, 64, seed=3)
    found = hang(model, processor, image, question, pruners, expected=expected, max_new_tokens=8)
    assert len(encoded) == 1
    names = [panel.name for panel in found.panels]
    assert names[0] == UNPRUNED and {*names, *left_out} == set(list_pruners())
    # Groups stay together, and names in a group are in order.
    keys = [(panel.group, panel.name) for panel in found.panels[1:]]
    groups = list(dict.fromkeys(group for group, _ in keys))
    assert keys == sorted(keys, key=lambda key: (groups.index(key[0]), key[1]))
    inputs = build_inputs(processor, [[image]], [question])
    by_name = {pruner.name: pruner for pruner in pruners}
    assert by_name["random"].seed == 3
    for panel in found.panels:
        alone = answer(model, processor, inputs, by_name[panel.name], max_new_tokens=8)
        assert panel.answer == alone.texts[0] and panel.right == (panel.answer == expected)
        assert torch.equal(panel.selections[0].index, alone.report.images[0].selection.index)


def test_what_a_model_cannot_host_is_left_out_or_refused_if_named(for_videos):
    model = CASES["video_llava"].model()
    pruners, left_out = choose(model, None, 3, seed=0)
    assert {*left_out, *(pruner.name for pruner in pruners)} == set(list_pruners())
    assert "made for videos" in left_out["moving"] and "does not give" in left_out["tome"]
    assert "inside the language model" in left_out["fastv"]
    for name in ("moving", "tome", "fastv"):
        with pytest.raises(ValueError, match=f"{name} .*choose another method"):
            choose(model, ["zoo", name], 3, seed=0)


def test_the_command_draws_all_methods_of_the_bundled_scene(command, tmp_path, for_videos):  # noqa: F811
    code, out, err = command("gallery", "--max-new-tokens", "8")
    assert code == 0 and err == ""
    assert all(name in out for name in list_pruners()) and "right answer" in out
    assert "left out: moving is made for videos, not for images\n" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    with Image.open(tmp_path / "gallery.png") as picture:
        assert picture.format == "PNG" and 1000 <= picture.width <= 1100
    assert (tmp_path / "gallery.png").stat().st_size < 400_000


def test_json_of_a_users_own_picture(command, photo, tmp_path):  # noqa: F811
    line = ("gallery", photo, "Is there a dog?", "--method", "zoo", "--method", "tome", "--keep", "0.25", "--json")
    code, out, err = command(*line)
    found = json.loads(out)
    assert code == 0 and err == "" and found["picture"] is None and found["expected"] is None
    assert not (tmp_path / "gallery.png").exists()
    assert [one["name"] for one in found["methods"]] == ["none", "zoo", "tome"]
    everything, zoo, tome = found["methods"]
    # Without a right answer, that of all tokens counts.
    assert everything["right"] and zoo["right"] == (zoo["answer"] == everything["answer"])
    assert [len(one["kept"][0]) for one in found["methods"]] == [576, 144, 144]
    assert zoo["merged"] == [[]] and set(tome["merged"][0]) <= set(tome["kept"][0]) and tome["merged"][0]
    code, out, _ = command(*line[:-1], "--save", "new/out.jpg")
    assert code == 0 and "as with all tokens" in out
    with Image.open(tmp_path / "new" / "out.jpg") as picture:
        assert picture.format == "JPEG" and picture.mode == "RGB"


BAD = {
    "save in a file": (["--save", "photo.jpg/out.png"], "photo.jpg is a file"),
    "save as text": (["--save", "out.txt"], "ends in none of .png"),
    "save over the image": (["photo.jpg", "a dog?", "--save", "photo.jpg"], "would replace the image that is read"),
    "save on a folder": (["--save", "."], "is a folder"),
    "method": (["--method", "zooo"], "did you mean 'zoo'"),
    "made for videos": (["--method", "moving"], "made for videos"),
    "keep": (["--keep", "0"], "at least 1"),
    "no question": (["photo.jpg"], "give a question"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_exit_code_two(command, photo, for_videos, kind):  # noqa: F811
    arguments, message = BAD[kind]
    code, out, err = command("gallery", *arguments)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_nothing_is_loaded_before_a_path_is_refused(command, monkeypatch):  # noqa: F811
    monkeypatch.setattr("zooprune.loading.load_model", lambda *_, **__: pytest.fail("loaded"))
    assert command("gallery", "--save", "out.txt")[0] == 2


def panel(name, kept, right, group="a group", **selected):
    selection = Selection(torch.tensor(kept), GRID * GRID, **selected)
    return Panel(name, group, "an answer", right, (dataclasses.replace(report(kept), selection=selection),))


def test_kept_patches_stay_mixtures_are_framed_and_signs_differ():
    colour = (200, 40, 40)
    into = torch.tensor([0, 0, 0, 0, 0, 1, *[-1] * 10])
    panels = [panel("one", [0, 5], True, into=into), panel("other", [0, 5], False)]
    page = draw_gallery(Image.new("RGB", (56, 56), colour), panels, "a question", "one line\nanother")
    pixels = np.asarray(page)
    (top, *_), (left, *_) = np.nonzero((pixels == _FRAME).all(-1))
    assert left == _MARGIN
    step, across = _SMALL // GRID, _SMALL + _GAP
    for number in range(2):
        for place in range(GRID * GRID):
            row, column = divmod(place, GRID)
            corner = top + row * step, left + number * across + column * step
            assert (tuple(pixels[corner[0] + step // 2, corner[1] + step // 2]) == colour) == (place in (0, 5))
            assert (tuple(pixels[corner]) == _FRAME) == (number == 0 and place == 0)
    # A tick and a cross, also to whoever sees no colours.
    signs = []
    for number, sign in enumerate((_GREEN, _RED)):
        label = pixels[top + _SMALL : top + _SMALL + 50, left + number * across :][:, :16]
        signs.append((label == sign).all(-1))
    assert signs[0].any() and signs[1].any() and (signs[0] != signs[1]).any()


def test_groups_begin_a_row_and_long_words_are_cut():
    image = Image.new("RGB", (56, 56))
    same = draw_gallery(image, [panel("one", [0], True), panel("two", [0], True)], "q", "c")
    apart = draw_gallery(image, [panel("one", [0], True), panel("two", [0], True, "another")], "q", "c")
    assert apart.width == same.width and apart.height > same.height + _SMALL
    wordy = dataclasses.replace(panel("a" * 99, [0], True), answer="b" * 99 + "\n" + "c" * 99)
    page = np.asarray(draw_gallery(image, [wordy], "q", "c"))
    assert (page[-60:, _MARGIN + _SMALL + 2 :] == 255).all()


@pytest.mark.parametrize("size", [(1, 300), (3000, 1), (40, 4000), (4000, 40)])
def test_an_image_of_any_shape(size):
    into = torch.zeros(GRID * GRID, dtype=torch.int64)
    page = draw_gallery(Image.new("RGB", size), [panel("one", [0], True, into=into)], "q", "c")
    assert page.height < 3 * _SMALL


def test_an_image_in_tiles_is_drawn_twice_under_every_method():
    colour = (200, 40, 40)
    kept = tiled_report([0, 6, 9])
    merged = dataclasses.replace(kept.selection, into=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]))
    images = (kept, dataclasses.replace(kept, selection=merged))
    panels = [dataclasses.replace(panel("one", [0], True), images=(each,)) for each in images]
    pixels = np.asarray(draw_gallery(Image.new("RGB", (80, 40), colour), panels, "a question", "a line"))
    for number in range(2):
        column = pixels[:, _MARGIN + number * (_SMALL + _GAP) :][:, :_SMALL]
        framed = (column == _FRAME).all(-1)
        shown = (column == colour).all(-1) | framed
        # A quarter of the whole image and a quarter of the tiles.
        assert shown.any(1).sum() == _SMALL // 4 + _SMALL // 2 and framed.any() == number
        assert shown.sum() == _SMALL**2 // 4


def test_an_image_in_several_pieces_cannot_be_drawn():
    pieces = dataclasses.replace(panel("one", [0], True), images=(report([0]), report([1])))
    with pytest.raises(CannotDrawError):
        draw_gallery(Image.new("RGB", (60, 60)), [pieces], "q", "c")
