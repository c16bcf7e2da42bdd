from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from zooprune.layout import Layout
from zooprune.picture import _INK, _PAPER, _SIDE, CannotDrawError, draw_each, draw_kept, draw_views, save_picture
from zooprune.reports import ImageReport
from zooprune.tokens import Selection

GRID = 4


def report(kept: list[int], scores: torch.Tensor | None = None) -> ImageReport:
    place = torch.arange(GRID * GRID)
    positions = torch.stack([place * 0, place * 0, place // GRID, place % GRID], dim=-1)
    return ImageReport(0, Selection(torch.tensor(kept), GRID * GRID, scores), positions)


def test_kept_patches_keep_their_colour_and_others_lose_it():
    image = Image.new("RGB", (56, 56), (200, 40, 40))
    page = draw_kept(image, [report([0, 6])], "a question\nan answer", scores_label="score")
    left, top = 16, 42
    step = _SIDE // GRID
    for place in range(GRID * GRID):
        pixel = page.getpixel((left + place % GRID * step + step // 2, top + place // GRID * step + step // 2))
        assert (pixel == (200, 40, 40)) == (place in (0, 6))


def test_scores_get_a_panel_of_their_own():
    image = Image.new("RGB", (56, 56), (90, 90, 90))
    plain = draw_kept(image, [report([1])], "q", scores_label="score")
    scored = draw_kept(image, [report([1], torch.arange(GRID * GRID).float())], "q", scores_label="score")
    assert scored.width == plain.width + _SIDE + 16
    panel = np.asarray(scored.crop((32 + _SIDE, 42, 32 + 2 * _SIDE, 42 + _SIDE))).astype(int)
    # From violet at the lowest score to yellow at the highest.
    assert panel[5, 5, 2] > panel[5, 5, 1]
    assert panel[-5, -5, 1] > panel[-5, -5, 2]


def test_patches_of_a_kept_one_are_tinted_alike_and_its_own_is_not():
    image = Image.new("RGB", (56, 56), (90, 90, 90))
    into = torch.tensor([0, 0, 0, 0] + [0, 1, 1, 1] + [1] * 7 + [-1])
    held = report([0, 5])
    held = ImageReport(0, Selection(torch.tensor([0, 5]), GRID * GRID, into=into), held.positions)
    page = draw_kept(image, [held], "q", scores_label="score")
    panel = np.asarray(page.crop((32 + _SIDE, 42, 32 + 2 * _SIDE, 42 + _SIDE)))
    step = _SIDE // GRID
    colours = [
        tuple(panel[row * step + step // 2, column * step + step // 2]) for row in range(4) for column in range(4)
    ]
    assert colours[0] == colours[5] == (90, 90, 90)
    assert len({colours[place] for place in (1, 2, 3, 4)}) == len({colours[place] for place in range(6, 15)}) == 1
    assert len({*colours}) == 4


def test_a_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "out.png"
    path.write_bytes(b"old")

    def fail(self, target, *_, **__):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_picture(Image.new("RGB", (2, 2)), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_image_in_several_pieces_cannot_be_drawn():
    image = Image.new("RGB", (60, 60))
    with pytest.raises(CannotDrawError, match="leave out --save"):
        draw_kept(image, [report([1]), report([2])], "q", scores_label="score")


@pytest.mark.parametrize("size", [(1, 200), (2000, 1), (1, 1), (30, 4000), (4000, 30), (336, 336)])
def test_a_picture_of_any_shape_has_a_moderate_size(size):
    picture = draw_kept(
        Image.new("RGB", size), [report([1], torch.arange(GRID * GRID).float())], "q", scores_label="score"
    )
    assert picture.width == 2 * _SIDE + 48 and 80 < picture.height < 2.5 * _SIDE


def test_each_view_is_a_picture_of_its_own():
    image = Image.new("RGB", (56, 56), (200, 40, 40))
    assert list(draw_views(image, [report([0, 6])])) == ["kept"]
    views = draw_views(image, [report([0, 6], torch.arange(GRID * GRID).float())])
    assert list(views) == ["kept", "scores"]
    assert {view.size for view in views.values()} == {(_SIDE, _SIDE)}


def tiled_report(kept: list[int], scores: torch.Tensor | None = None) -> ImageReport:
    """Two tiles beside each other, after the whole image: 2 x 2 tokens each."""
    place = torch.arange(12)
    positions = torch.stack([place * 0, place // 4, place % 4 // 2, place % 2], dim=-1)
    return ImageReport(0, Selection(torch.tensor(kept), 12, scores), positions, layout=Layout(0, (1, 2)))


def test_an_image_in_tiles_is_drawn_twice():
    image = Image.new("RGB", (80, 40), (200, 40, 40))
    whole, tiles = draw_each(image, [tiled_report([0, 6, 9])])
    assert [(view.label, view.kept, view.total) for view in (whole, tiles)] == [
        ("whole image", 1, 4), ("1 x 2 tiles", 2, 8),
    ]  # fmt: skip
    for view, columns, kept in ((whole, 2, [0]), (tiles, 4, [3, 4])):
        picture = view.pictures["kept"]
        cells = [
            picture.getpixel((round((column + 0.3) * picture.width / columns), round((row + 0.3) * picture.height / 2)))
            for row in range(2)
            for column in range(columns)
        ]
        assert [place for place, colour in enumerate(cells) if colour == (200, 40, 40)] == kept
    # The border of the tiles is dark in the middle and light beside it.
    assert tiles.pictures["kept"].getpixel((_SIDE // 2, 5)) == _INK
    assert tiles.pictures["kept"].getpixel((_SIDE // 2 - 1, 5)) == _PAPER


def test_both_views_of_an_image_share_a_page_and_the_scale_of_their_scores():
    image = Image.new("RGB", (80, 40), (90, 90, 90))
    reports = [tiled_report([0, 6, 9], torch.arange(12).float())]
    page = draw_kept(image, reports, "a question\nan answer", scores_label="score")
    whole, tiles = draw_each(image, reports)
    for view, top in ((whole, 68), (tiles, 68 + 68 + _SIDE // 2)):
        for left, name in ((16, "kept"), (32 + _SIDE, "scores")):
            part = page.crop((left, top, left + _SIDE, top + _SIDE // 2))
            assert part.tobytes() == view.pictures[name].tobytes()
    lowest, highest = whole.pictures["scores"].getpixel((9, 9)), tiles.pictures["scores"].getpixel((_SIDE - 9, 240))
    assert lowest[2] > lowest[1] and highest[1] > highest[2]
    views = draw_views(image, reports)
    assert list(views) == ["kept", "scores"] and views["kept"].height > 2 * whole.pictures["kept"].height


def test_where_no_token_lies_the_map_of_scores_shows_the_image_in_grey():
    held = tiled_report([0, 6, 9], torch.arange(12).float())
    held = dataclasses.replace(held, layout=Layout(0, (1, 2), tokens_box=(0.0, 0.1, 1.0, 0.9)))
    _, tiles = draw_each(Image.new("RGB", (80, 40), (90, 90, 90)), [held])
    assert tiles.pictures["scores"].getpixel((9, 5)) == (90, 90, 90) != tiles.pictures["scores"].getpixel((9, 60))
    assert tiles.pictures["kept"].getpixel((9, 5)) == tiles.pictures["kept"].getpixel((9, 60))
