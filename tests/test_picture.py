from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from zooprune.picture import _SIDE, CannotDrawError, draw_kept, draw_views, save_picture
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
