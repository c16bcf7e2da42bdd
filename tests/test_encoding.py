"""What was encoded is remembered for the prompt it was encoded for, and no other."""

from __future__ import annotations

import pytest
import torch

from zoo_of_models import BOS, CASES, IMAGE, VISION_END, VISION_START
from zooprune import prune
from zooprune.encoding import encode, once, remembering_encodings
from zooprune.families import find_family
from zooprune.signals import find_signal


def prompt(*images: int, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a prompt of images with so many tiles each, four tokens a tile."""
    ids = [BOS]
    for tiles in images:
        ids += [VISION_START, *[IMAGE] * 4 * tiles, VISION_END, 20]
    row = torch.tensor([ids])
    return {"input_ids": row, "attention_mask": torch.ones_like(row), "pixel_values": pixels}


@pytest.fixture
def model():
    return CASES["internvl"].model()


def kept(model, inputs) -> list[int]:
    with torch.no_grad(), prune(model, "diversity", keep=2) as session:
        session.prepare(inputs)
    return [len(image.selection) for image in session.reports[-1].images]


def test_the_same_tiles_make_other_images_in_another_prompt(model):
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    one, three, two = (prompt(*images, pixels=pixels) for images in ((3,), (1, 1, 1), (1, 2)))
    with remembering_encodings():
        assert [kept(model, inputs) for inputs in (one, three, two, one)] == [[2], [2, 2, 2], [2, 2], [2]]


def test_the_same_prompt_is_encoded_once(model):
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    inputs, family = prompt(3, pixels=pixels), find_family(model)
    with torch.no_grad(), remembering_encodings():
        first = encode(family, model, "image", inputs)
        assert encode(family, model, "image", dict(inputs)) is first
        assert encode(family, model, "image", inputs | {"pixel_values": pixels.clone()}) is not first
        assert encode(family, CASES["internvl"].model(), "image", inputs) is not first
    with torch.no_grad():
        assert encode(family, model, "image", inputs) is not first


def test_methods_share_an_encoding_with_all_that_they_read(model):
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    inputs, family = prompt(3, pixels=pixels), find_family(model)
    keys, attention = find_signal("tower_keys"), find_signal("tower_attention")
    with torch.no_grad(), remembering_encodings([keys, attention, keys]):
        first = encode(family, model, "image", inputs)
        assert {"tower_keys", "tower_attention"} <= set(first.visuals[0].tokens.signals)
        assert encode(family, model, "image", inputs, [attention]) is first
        assert encode(family, model, "image", inputs, [find_signal("tower_keys/0")]) is not first


def test_encodings_can_be_kept_for_another_block_and_choices_are_not(model):
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    inputs, family, encodings = prompt(3, pixels=pixels), find_family(model), {}
    with torch.no_grad():
        with remembering_encodings(encodings=encodings):
            first = encode(family, model, "image", inputs)
            assert once(first, ("a method",), lambda: "one") == "one"
        with remembering_encodings(encodings=encodings):
            assert encode(family, model, "image", inputs) is first
            assert once(first, ("a method",), lambda: "another") == "another"
