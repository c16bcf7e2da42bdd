"""Images that stand in the prompt as several tiles are one image again."""

from __future__ import annotations

import pytest
import torch

from zoo_of_models import BOS, CASES, IMAGE
from zooprune import get_pruner, prune
from zooprune.families import find_family, idefics3
from zooprune.families.tiling import one_id_apart, runs

GREEDY = {"max_new_tokens": 2, "do_sample": False}
FENCE, FIRST, SECOND, WHOLE, BREAK, BEGIN, END, WORD = 50, 51, 52, 53, 54, 55, 56, 40


@pytest.fixture(
    scope="module", params=["internvl", "qianfan_ocr", "idefics3", "smolvlm", "aya_vision", "cohere2_vision"]
)
def tiled(request):
    case = CASES[request.param]
    return case, case.model()


def test_reports_are_by_the_image(tiled):
    case, model = tiled
    inputs = case.make(model, [[1, 0, 1], [], [0]])
    with prune(model, get_pruner("random", keep=3)) as session:
        model.generate(**inputs, **GREEDY)
    images = session.reports[0].images
    assert [image.row for image in images] == [0, 0, 0, 2]
    assert [image.selection.total for image in images] == [12, 4, 12, 4]
    assert [len(image.selection) for image in images] == [3, 3, 3, 3]
    for image in images:
        tile, row, column = image.positions[:, 1:].unbind(1)
        assert torch.equal(tile * 4 + row * 2 + column, torch.arange(image.selection.total))


@pytest.mark.parametrize(("scope", "shares"), [("tile", [[2, 2, 1], [4]]), ("prompt", [[5]])])
def test_the_budget_of_an_image_is_dealt_out_to_its_tiles(tiled, scope, shares):
    case, model = tiled
    with prune(model, get_pruner("random", keep=5), scope=scope) as session:
        model.generate(**case.make(model, [[1, 0]]), **GREEDY)
    images = session.reports[0].images
    assert [len(image.selection) for image in images] == [sum(share) for share in shares]
    if scope == "tile":
        for image, share in zip(images, shares, strict=True):
            assert torch.bincount(image.positions[image.selection.index, 1]).tolist() == share


def test_a_tile_that_is_cut_short_is_refused(tiled):
    case, model = tiled
    inputs = case.make(model, [[1]])
    place = (inputs["input_ids"][0] == IMAGE).nonzero()[1, 0]
    inputs["input_ids"][0, place] = WORD
    with prune(model, get_pruner("random", keep=3)), pytest.raises(ValueError, match="3 tiles of 4 do not fill"):
        model.generate(**inputs, **GREEDY)


def prompt(*pieces):
    """Return ids with two slots for every "tile"."""
    ids = [BOS]
    for piece in pieces:
        ids += [IMAGE, IMAGE] if piece == "tile" else [piece]
    return ids


SPLIT = (FENCE, FIRST, "tile", FENCE, SECOND, "tile", BREAK, BREAK, FENCE, WHOLE, "tile", FENCE)
SINGLE = (FENCE, WHOLE, "tile", FENCE)


@pytest.mark.parametrize(
    ("pieces", "images"),
    [
        ((WORD,), []),
        (SPLIT, [6]),
        (SINGLE, [2]),
        ((*SPLIT, WORD, *SINGLE, *SPLIT), [6, 2, 6]),
        ((*SINGLE, *SINGLE, WORD), [2, 2]),
        # Without fences, or with nothing but words around them.
        (("tile",), [2]),
        (("tile", "tile"), [4]),
        (("tile", WORD, "tile"), [2, 2]),
        ((WORD, FIRST, "tile", WORD, WHOLE, "tile"), [2, 2]),
        ((FENCE, "tile", FENCE, FENCE, "tile", FENCE), [2, 2]),
    ],
)
def test_fences_tell_where_an_image_ends(pieces, images):
    ids = prompt(*pieces)
    found = idefics3._images(ids, runs(torch.tensor([ids]) == IMAGE)[0])
    assert [sum(map(len, image)) for image in found] == images


@pytest.mark.parametrize(
    ("pieces", "images"),
    [
        ((BEGIN, WHOLE, "tile", END), [2]),
        ((BEGIN, FIRST, "tile", SECOND, "tile", WHOLE, "tile", END), [6]),
        ((BEGIN, FIRST, "tile", WHOLE, "tile", END, BEGIN, WHOLE, "tile", END), [4, 2]),
        ((BEGIN, "tile", BREAK, "tile", BREAK, END, BEGIN, "tile", BREAK, END), [4, 2]),
        (("tile", WORD, WORD, "tile"), [2, 2]),
        (("tile",), [2]),
        ((WORD,), []),
    ],
)
def test_tiles_one_id_apart_are_one_image(pieces, images):
    assert one_id_apart(runs(torch.tensor([prompt(*pieces)]) == IMAGE)[0]) == images


def test_rows_are_told_apart_by_their_own_markers():
    """Two prompts of one batch that were made with other markers."""
    case = CASES["idefics3"]
    model = case.model()
    inputs = case.make(model, [[1], [1]])
    second = inputs["input_ids"][1]
    for old, new in ((4, FENCE), (9, WHOLE)):
        second[second == old] = new
    with torch.no_grad():
        visuals = find_family(model).encode(model, "image", inputs).visuals
    assert [visual.length for visual in visuals] == [12, 12]


def test_tiles_of_different_sizes_are_one_image():
    """LFM2-VL: two tiles of 4 by 4 patches, and the whole of 2 by 4."""
    case = CASES["lfm2_vl"]
    model = case.model()
    inputs = case.make(model, [[1, 0], [], [0]])
    with prune(model, get_pruner("random", keep=5)) as session:
        model.generate(**inputs, **GREEDY)
    images = session.reports[0].images
    assert [(image.row, image.selection.total, len(image.selection)) for image in images] == [
        (0, 10, 5), (0, 6, 5), (2, 6, 5),
    ]  # fmt: skip
    square = [[row, column] for row in range(2) for column in range(2)]
    places = [[0, tile, *place] for tile in range(2) for place in square] + [[0, 2, 0, 0], [0, 2, 0, 1]]
    assert images[0].positions.tolist() == places


@pytest.mark.parametrize(
    ("tile", "patch", "place"),
    [
        (0, 0, (0, 0, 0)),
        (0, 7, (0, 0, 1)),
        (1, 13, (1, 1, 0)),
        (1, 15, (1, 1, 1)),
        (2, 5, (2, 0, 0)),
        (2, 6, (2, 0, 1)),
    ],
)
def test_padded_patches_are_where_they_say(tile, patch, place):
    case = CASES["lfm2_vl"]
    model = case.model()
    for name, parameter in model.named_parameters():
        if "vision_tower" in name and "out_proj" in name:
            torch.nn.init.zeros_(parameter)
    inputs = case.make(model, [[1]])
    changed = inputs["pixel_values"].clone()
    changed[tile, patch] += 1
    with torch.no_grad():
        family = find_family(model)
        before, after = (
            family.encode(model, "image", inputs | {"pixel_values": pixels}).visuals[0].tokens
            for pixels in (inputs["pixel_values"], changed)
        )
    moved = (before.features - after.features).abs().amax(1) > 1e-6
    assert before.positions[moved].tolist() == [[0, *place]]
