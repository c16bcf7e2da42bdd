"""Tokens of tiles are drawn where their patches lie on the image."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import PixtralImageProcessorPil

from real_processors import REAL
from test_processors import processor, read
from zoo_of_models import CASES
from zooprune.families import find_family, idefics3, llava_next
from zooprune.families.tiling import least_resized, nearest_shape
from zooprune.layout import View
from zooprune.picture import draw_each
from zooprune.prompting import seen_images
from zooprune.reports import ImageReport
from zooprune.tokens import Selection

COLOUR = (200, 40, 40)
#: Models that cut images into tiles, and of those the ones that stretch an image over its tiles.
STRETCHING = ("internvl", "idefics3", "smolvlm", "aya_vision", "cohere2_vision")
PADDING = ("llava_next", "llava_next_video", "llava_onevision")
#: Width and height of images.
SIZES = ((97, 61), (300, 50), (60, 200), (128, 128), (400, 290))
#: Left, top, right and bottom of squares, in quarters of the image.
SQUARES = ((0, 0, 1, 1), (1, 2, 2, 3), (2, 0, 4, 1), (3, 3, 4, 4))


@pytest.fixture(scope="module", params=[*STRETCHING, *PADDING])
def seeing(request):
    """A model with 8 x 8 patches to a tile, each of which sees nothing else, and its processor."""
    parts = processor(request.param)
    config = CASES[request.param].model().config
    patch = config.vision_config.patch_size
    config.vision_config.patch_size = [side // 2 for side in patch] if isinstance(patch, list) else patch // 2
    torch.manual_seed(0)
    model = type(CASES[request.param].model())(config).eval()
    # What Cohere's processor calls so is the number of tokens in a row.
    patch = 2 if request.param == "cohere2_vision" else 0.5
    for name, factor in (("image_seq_length", 4), ("image_seq_len", 4), ("num_image_tokens", 4), ("patch_size", patch)):
        for part in (parts, parts.image_processor):
            if isinstance(vars(part).get(name), int):
                setattr(part, name, int(vars(part)[name] * factor))
    with torch.no_grad():
        for attention in find_family(model).attentions(model):
            for parameter in attention.parameters():
                parameter.zero_()
    return request.param, model, parts


def tokens_of(model, parts, name, images):
    """Return the last image of a prompt, encoded."""
    nested = REAL[name].nested or len(images) > 1
    inputs = read(parts, [f"w1 {REAL[name].marker * len(images)} w2"], images=[images] if nested else images)
    with torch.no_grad():
        return find_family(model).encode(model, "image", inputs).visuals[-1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("square", SQUARES)
def test_a_square_is_shown_where_it_is(seeing, size, square, monkeypatch):
    name, model, parts = seeing
    monkeypatch.setattr("zooprune.picture._mark_tiles", lambda *_: None)
    plain = Image.new("RGB", size)
    marked = plain.copy()
    left, top, right, bottom = (round(place * side / 4) for place, side in zip(square, size * 2, strict=True))
    ImageDraw.Draw(marked).rectangle((left, top, right - 1, bottom - 1), fill="white")
    report = report_of(model, parts, name, [plain], [marked])
    whole, tiles = draw_each(Image.new("RGB", size, COLOUR), [report])
    assert whole.label == "whole image" and tiles.label.endswith("tiles")
    for view, drawn in zip(report.views(*size), (whole, tiles), strict=True):
        check(view, drawn.pictures["kept"], (left, top, right, bottom), size)


def report_of(model, parts, name, plain, marked):
    """Return the report of the last image of a prompt, of which those tokens are kept that a change moves."""
    before, after = (tokens_of(model, parts, name, images) for images in (plain, marked))
    change = (after.tokens.embeddings - before.tokens.embeddings).norm(dim=1)
    # A token that changes less shows a small part of it, and lies beside one that changes more.
    kept = (change > change.max() / 3).nonzero()[:, 0]
    return ImageReport(0, Selection(kept, len(change)), after.tokens.positions, layout=after.layout)


def check(view, picture, square, size):
    """Check that a picture shows a square of an image in colour, and nothing else."""
    left, top, right, bottom = square
    shown = (np.asarray(picture) == COLOUR).all(-1)
    across, down = shown.shape[1] / size[0], shown.shape[0] / size[1]
    # A patch that lies partly inside is shown or not.
    rows, columns = view.tokens.shape
    wide = (view.box[2] - view.box[0]) / columns * shown.shape[1] + 1
    high = (view.box[3] - view.box[1]) / rows * shown.shape[0] + 1
    x, y = np.arange(shown.shape[1]) + 0.5, np.arange(shown.shape[0]) + 0.5
    near, inside = (
        np.outer(
            (y > top * down - by * high) & (y < bottom * down + by * high),
            (x > left * across - by * wide) & (x < right * across + by * wide),
        )
        for by in (1, -1)
    )
    assert shown.any() and not (shown & ~near).any() and (shown | ~inside).all(), view.label


@pytest.mark.parametrize("seeing", ["llava_onevision"], indirect=True)
@pytest.mark.parametrize("size", SIZES)
def test_several_images_of_a_prompt_are_squares_with_padding(seeing, size):
    name, model, parts = seeing
    plain = Image.new("RGB", size)
    marked = plain.copy()
    square = 0, 0, size[0] // 4, size[1] // 4
    ImageDraw.Draw(marked).rectangle((*square[:2], square[2] - 1, square[3] - 1), fill="white")
    report = report_of(model, parts, name, [plain, plain], [plain, marked])
    (view,) = report.views(*size)
    (drawn,) = draw_each(Image.new("RGB", size, COLOUR), [report])
    assert drawn.label == ""
    check(view, drawn.pictures["kept"], square, size)


def test_padding_is_told_to_the_pixel():
    # 500 x 900 in 2 x 2 tiles of 336: 374 x 672 after 149 rows of padding, of whose 48 rows of tokens 26 stay.
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=336), image_grid_pinpoints=[[336, 672], [672, 336], [672, 672]]
    )
    assert llava_next._grid(config, [500, 900]) == (2, 2)
    layout = llava_next._tiled(config, [500, 900], (2, 2), 24)
    assert layout.tiles_box == pytest.approx((0, -149 / 374, 1, (672 - 149) / 374))
    assert layout.tokens_box == pytest.approx((0, (11 * 14 - 149) / 374, 1, (37 * 14 - 149) / 374))
    # Nothing is left of an image that is thinner than a row.
    assert llava_next._tiled(config, [1, 900], (1, 2), 24).views(torch.tensor([[0, 0, 0, 0]]), 900, 1)[0].label == ""
    assert llava_next._squared([50, 300]).whole_box == (0.0, -2.5, 1.0, 3.5)


#: Images of many shapes and sizes, some of them smaller than a tile.
SHAPES = [(round(base * wide), base) for base in (40, 300, 512, 900, 3000) for wide in np.geomspace(1 / 20, 20, 61)]


@pytest.mark.parametrize(("fewest", "most"), [(1, 4), (1, 12), (2, 10)])
def test_the_nearest_shape_is_what_processors_choose(fewest, most):
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    for width, height in SHAPES:
        columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), fewest, most)
        assert nearest_shape(rows * columns, width, height) == (rows, columns)


@pytest.mark.parametrize("most", [4, 12])
def test_the_least_resized_grid_is_what_its_processor_chooses(most):
    pytest.importorskip("torchvision", reason="transformers offers it only beside torchvision: make test-extras")
    from transformers.models.cohere2_vision.image_processing_cohere2_vision import get_optimal_tiled_canvas

    for width, height in SHAPES:
        columns, rows = get_optimal_tiled_canvas((height, width), (512, 512), 1, most)
        assert least_resized(512, rows * columns, width, height) == (rows, columns)


def test_lfm2_chooses_the_nearest_shape():
    pytest.importorskip("torchvision", reason="transformers offers it only beside torchvision: make test-extras")
    from transformers import Lfm2VlImageProcessor

    parts = Lfm2VlImageProcessor()
    for width, height in SHAPES:
        columns, rows, *_ = parts._get_grid_layout(height, width, min_tiles=2, max_tiles=10, tile_size=512)
        assert nearest_shape(rows * columns, width, height) == (rows, columns)


def test_lfm2_tiles_are_a_raster_of_their_own():
    """Two tiles of 2 x 2 tokens beside each other, and the whole of 1 x 2."""
    case = CASES["lfm2_vl"]
    model = case.model()
    with torch.no_grad():
        (visual,) = find_family(model).encode(model, "image", case.make(model, [[1]])).visuals
    whole, tiles = visual.layout.views(visual.tokens.positions, 200, 100)
    assert whole.tokens.tolist() == [[8, 9]] and tiles.label == "1 x 2 tiles"
    assert tiles.tokens.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    (_, upright) = visual.layout.views(visual.tokens.positions, 100, 200)
    assert upright.label == "2 x 1 tiles" and upright.tokens.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_rows_of_tiles_that_do_not_end_evenly_have_no_known_grid():
    starts = (0, 10, 21, 31, 42)
    runs = [range(start, start + 8) for start in starts]
    assert idefics3._grid(runs) == (2, 2)
    assert idefics3._grid(runs[:1]) is None
    assert idefics3._grid([*runs[:3], runs[4]]) is None
    assert idefics3._grid([range(10 * number, 10 * number + 8) for number in range(5)]) is None


def test_borders_lie_between_the_tiles_and_padding_is_outside():
    # A wide image in 2 x 2 tiles: a quarter of the height above and below it is padding.
    tokens = torch.arange(8).view(2, 4)
    view = View("2 x 2 tiles", tokens, (0.0, 0.0, 1.0, 1.0), (2, 2), (0.0, -0.5, 1.0, 1.5))
    assert view.borders(200, 100) == ([100], [50])
    assert view.token_at(4, 2).tolist() == tokens.tolist()
    beyond = View("", tokens, (-0.5, 0.0, 0.5, 1.0))
    assert beyond.token_at(4, 2).tolist() == [[2, 3, -1, -1], [6, 7, -1, -1]]


def test_images_of_several_sizes_are_seen_without_the_padding_that_makes_them_alike():
    images = [Image.new("RGB", (112, 56), COLOUR), Image.new("RGB", (56, 112), COLOUR)]
    parts = PixtralImageProcessorPil(patch_size={"height": 14, "width": 14}, size={"longest_edge": 112})
    inputs = parts(images, return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 112, 112)
    seen = seen_images(SimpleNamespace(image_processor=parts), inputs, images)
    assert [image.tobytes() for image in seen] == [image.tobytes() for image in images]


def test_images_are_seen_under_both_names_of_their_pixels():
    images = [Image.new("RGB", (56, 56), COLOUR)]
    parts = PixtralImageProcessorPil(patch_size={"height": 14, "width": 14}, size={"longest_edge": 56})
    pixels = parts(images, return_tensors="pt")["pixel_values"]
    (seen,) = seen_images(SimpleNamespace(image_processor=parts), {"pixel_values_images": pixels}, images)
    assert seen.tobytes() == images[0].tobytes()
