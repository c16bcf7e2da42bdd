"""Real images of odd sizes through the real processors, offline, into tiny models."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from itertools import chain

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from real_processors import REAL, SQUARE
from zoo_of_models import CASES, IMAGE
from zooprune import ZooPrune, prune
from zooprune.loading import load_model

GREEDY = {"max_new_tokens": 2, "do_sample": False}
SHARES = [0.33, 0.22, 0.20, 0.11, 0.10, 0.05]
#: Width and height of the images of every prompt.
SIZES = [[(97, 61), (1, 1)], [(5, 300)], [], [(300, 5), (8, 9), (60, 200)]]

pytestmark = pytest.mark.filterwarnings("ignore:this projector is linear")


def picture(width, height):
    noise = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def processor(name):
    if REAL[name].torchvision:
        pytest.importorskip("torchvision", reason="transformers offers it only beside torchvision: make test-extras")
    return REAL[name].build()


def read(parts, text, **visuals):
    with warnings.catch_warnings():
        # Some processors make arrays of tensors in a way that numpy is giving up.
        warnings.filterwarnings("ignore", "__array__", DeprecationWarning)
        return parts(text=text, **visuals, return_tensors="pt", padding=True)


@pytest.fixture(scope="module", params=list(REAL))
def real(request):
    """A tiny model, what its processor makes of four prompts, and what comes of them when everything is kept."""
    mark = REAL[request.param].marker
    texts = [f"w1 {mark} w2 w3 {mark} w4", f"{mark}w5", "w6 w7 w8", f"w9 {mark}{mark} w10 {mark}w11 w12"]
    images = [[picture(*size) for size in row] for row in SIZES]
    if not REAL[request.param].nested:
        images = [*chain(*images)]
    inputs = read(processor(request.param), texts, images=images)
    model = CASES[request.param].model()
    return model, inputs, generated(model, inputs, 1.0)


def generated(model, inputs, keep, **options):
    """Return the output and the report of a pruned call, whose prompts must have come back."""
    with prune(model, ZooPrune(keep=keep, directions=2), **options) as session:
        output = model.generate(**inputs, **GREEDY)
    (report,) = session.reports
    assert torch.equal(output[:, : report.prompt_length], inputs["input_ids"])
    return output, report


def test_what_the_processor_returns_goes_through_untouched(real):
    model, inputs, (output, report) = real
    assert torch.equal(output, model.generate(**inputs, **GREEDY))
    assert [image.row for image in report.images] == [row for row, sizes in enumerate(SIZES) for _ in sizes]
    assert report.total == report.kept == int((inputs["input_ids"] == IMAGE).sum())


@pytest.mark.parametrize("keep", [*SHARES, 1, 3, "one more than the smallest has"])
def test_every_image_meets_its_budget(real, keep):
    model, inputs, (_, whole) = real
    totals = [image.selection.total + image.separators[1] for image in whole.images]
    if isinstance(keep, str):
        keep = min(totals) + 1
    output, report = generated(model, inputs, keep)
    kept = [len(image.selection) + image.separators[0] for image in report.images]
    budgets = [min(keep, n) if isinstance(keep, int) else max(1, math.floor(keep * n + 0.5)) for n in totals]
    assert kept == budgets
    dropped = torch.zeros(len(SIZES), dtype=torch.int64)
    for image, before, after in zip(report.images, totals, kept, strict=True):
        dropped[image.row] += before - after
    assert report.pruned_length == int((inputs["attention_mask"].sum(1) - dropped).max())
    assert output.shape[1] == report.prompt_length + GREEDY["max_new_tokens"]


@pytest.mark.parametrize("scope", ["tile", "prompt"])
def test_other_scopes_meet_their_budget(real, scope):
    model, inputs, _ = real
    _, report = generated(model, inputs, 0.22, scope=scope)
    for image in report.images:
        total = image.selection.total + image.separators[1]
        assert len(image.selection) + image.separators[0] == max(1, math.floor(0.22 * total + 0.5))
    rows = [image.row for image in report.images]
    assert rows == ([0, 0, 1, 3, 3, 3] if scope == "tile" else [0, 1, 3])


@pytest.mark.parametrize("real", ["internvl", "idefics3", "smolvlm", "aya_vision", "cohere2_vision"], indirect=True)
def test_images_cut_into_tiles_are_whole_again(real, request):
    _, _, (_, report) = real
    name = request.node.callspec.params["real"]
    alone = [
        read(processor(name), [REAL[name].marker], images=[[picture(*size)]])["pixel_values"] for size in chain(*SIZES)
    ]
    tiles = [image.positions[:, 1].unique().tolist() for image in report.images]
    assert tiles == [list(range(pixels.shape[-4])) for pixels in alone]
    assert max(map(len, tiles)) > 1


READERS = {
    "qwen2_5_vl": lambda: transformers.Qwen2VLVideoProcessor(
        patch_size=4, size={"shortest_edge": 64, "longest_edge": 1600}, cap_pixels_per_frame=False
    ),
    "qwen3_vl": lambda: transformers.Qwen3VLVideoProcessor(
        patch_size=4, size={"shortest_edge": 64, "longest_edge": 6400}, do_sample_frames=False
    ),
    "glm4v": lambda: transformers.Glm4vVideoProcessor(
        patch_size=4, size={"shortest_edge": 64, "longest_edge": 6400}, do_sample_frames=False
    ),
    "glm46v": lambda: transformers.Glm46VVideoProcessor(
        patch_size=4, size={"shortest_edge": 64, "longest_edge": 6400}, do_sample_frames=False
    ),
    "llava_onevision": lambda: transformers.LlavaOnevisionVideoProcessor(size=SQUARE),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_videos_meet_their_budget(name):
    pytest.importorskip("torchvision", reason="transformers reads videos only beside torchvision: make test-extras")
    parts = processor(name)
    parts.video_processor = READERS[name]()
    mark = REAL[name].marker.replace(parts.image_token, parts.video_token).replace("_image|>", "_video|>")
    # Clips of one tensor have one length.
    lengths = (4, 4) if name == "llava_onevision" else (4, 6)
    clips = [np.stack([np.asarray(picture(40, 24))] * length) for length in lengths]
    inputs = read(parts, [f"w1 {mark} w2", f"{mark} w3 w4"], videos=clips)
    model = CASES[name].model()
    plain = model.generate(**inputs, **GREEDY)
    output, report = generated(model, inputs, 1.0)
    assert torch.equal(output, plain)
    totals = [image.selection.total + image.separators[1] for image in report.images]
    assert [(image.row, image.modality) for image in report.images] == [(0, "video"), (1, "video")]
    for keep in SHARES:
        _, report = generated(model, inputs, keep)
        kept = [len(image.selection) + image.separators[0] for image in report.images]
        assert kept == [max(1, math.floor(keep * total + 0.5)) for total in totals]


@pytest.mark.parametrize("name", ["llava_next", "idefics3", "qwen2_5_vl", "internvl"])
def test_a_checkpoint_is_loaded_with_its_processor(name, tmp_path):
    CASES[name].model().save_pretrained(tmp_path)
    processor(name).save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    config = json.loads(path.read_text())
    reads_videos = "video_processor" in config
    if reads_videos:
        # What stands in for it here has no name that could be loaded.
        kind = {"internvl": "InternVL", "qwen2_5_vl": "Qwen2VL"}[name]
        config["video_processor"] = {"video_processor_type": f"{kind}VideoProcessor"}
        path.write_text(json.dumps(config))
    if reads_videos and importlib.util.find_spec("torchvision") is None:
        with pytest.raises(ValueError, match=r"cannot load the processor of .*Torchvision.*; install that package$"):
            load_model(str(tmp_path))
        return
    model, loaded = load_model(str(tmp_path))
    assert type(loaded.image_processor).__name__.endswith("Pil")
    mark = REAL[name].marker
    output, report = generated(model, read(loaded, [f"{mark}w1"], images=[[picture(97, 61)]]), 0.2)
    assert 0 < report.kept < report.total and output.shape[1] == report.prompt_length + 2
