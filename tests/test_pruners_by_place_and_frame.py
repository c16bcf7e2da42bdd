"""Methods that go by place, length or frame, against released code and against plain loops in float64."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import Row, clip_llama, make_inputs
from test_pruners_attention_and_merging import cosines, make_tokens, named, of, permuted
from zoo_of_models import CASES, VIDEO_CASES, make_videos
from zooprune import prune
from zooprune.families.tiling import grid_positions
from zooprune.pruners import get_pruner
from zooprune.tokens import VisualTokens

DATA = Path(__file__).parent / "data"
EVS, VIDCOM2 = (np.load(DATA / f"{name}.npz") for name in ("evs", "vidcom2"))
NAMES = ["grid", "norm", "evs", "vidcom2"]
GREEDY = {"max_new_tokens": 2, "do_sample": False}

# An image has nothing that EVS compares, which it says.
pytestmark = pytest.mark.filterwarnings("ignore:evs compares frames")


def video(frames, rows, columns, embeddings):
    positions = grid_positions(rows, columns, frames=frames, device=torch.device("cpu"))
    return VisualTokens(embeddings, embeddings, nn.Identity(), positions)


def random_video(frames, rows, columns, seed=0, width=8):
    generator = torch.Generator().manual_seed(seed)
    return video(frames, rows, columns, torch.randn(frames * rows * columns, width, generator=generator))


def golden_video(data):
    (frames, height, width), merge = data["grid_thw"].tolist(), int(data["merge_size"])
    return video(frames, height // merge, width // merge, torch.tensor(data["features"].astype(np.float32)))


# What all of them have in common


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("total", [1, 2, 3, 7, 30])
def test_every_budget_of_every_image_is_met(name, total):
    tokens = make_tokens(total)
    for keep in range(1, total + 1):
        selection = get_pruner(name).select(tokens, keep)
        assert len(selection) == keep
        assert selection.scores.dtype == torch.float32 and bool(selection.scores.isfinite().all())


@pytest.mark.filterwarnings("ignore:evs keeps the first frame")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames, rows, columns", [(1, 3, 4), (2, 1, 1), (5, 2, 3), (9, 1, 2)])
def test_every_budget_of_every_video_is_met(name, frames, rows, columns):
    tokens = random_video(frames, rows, columns)
    for keep in range(1, len(tokens) + 1):
        assert len(get_pruner(name).select(tokens, keep)) == keep


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_decided_in_float32(name, dtype):
    tokens = random_video(4, 3, 3)
    half = tokens.embeddings.to(dtype)
    for keep in (10, 17, 30):
        one, other = (get_pruner(name).select(video(4, 3, 3, given), keep) for given in (half, half.float()))
        assert torch.equal(one.index, other.index)
        assert torch.equal(one.scores, other.scores)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_tokens_that_are_all_alike_are_no_trouble(name, value):
    tokens = video(3, 2, 2, torch.full((12, 5), value))
    for keep in (4, 5, 12):
        assert len(get_pruner(name).select(tokens, keep)) == keep


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [9, 14, 36])
def test_the_order_of_tokens_is_irrelevant(name, keep):
    tokens = random_video(4, 3, 3)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(3))
    one = get_pruner(name).select(tokens, keep).index
    assert torch.equal(order[get_pruner(name).select(permuted(tokens, order), keep).index].sort().values, one)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("film", VIDEO_CASES)
@pytest.mark.parametrize("scope", ["image", "tile", "prompt"])
@pytest.mark.filterwarnings("ignore:evs keeps the first frame")
def test_videos_of_every_family_are_cut_to_the_budget(name, film, scope):
    model = CASES[film].model()
    with prune(model, name, keep=9, scope=scope) as session:
        model.generate(**make_videos(film, model, [[4]]), **GREEDY)
    (seen,) = (image for image in session.reports[0].images if image.modality == "video")
    assert len(seen.selection) == 9


# The grid and the norm


def test_the_grid_sees_nothing_but_positions():
    kept = {tuple(get_pruner("grid").select(make_tokens(30, seed), 7).index.tolist()) for seed in range(4)}
    assert len(kept) == 1


def test_the_norm_is_that_of_embeddings():
    tokens = make_tokens(30)
    norms = np.linalg.norm(tokens.embeddings.double().numpy(), axis=1)
    assert get_pruner("norm").select(tokens, 8).index.tolist() == sorted(np.argsort(-norms)[:8].tolist())
    np.testing.assert_allclose(get_pruner("norm").score(tokens), norms, rtol=1e-6)


def test_large_norms_do_not_overflow():
    embeddings = torch.tensor([[1.0, 1.0], [3e4, 3e4], [6e4, 6e4], [2.0, 2.0]]).half()
    assert get_pruner("norm").select(video(1, 2, 2, embeddings), 2).index.tolist() == [1, 2]


# EVS


@named(EVS)
def test_evs_keeps_what_vllm_keeps(case):
    data = of(EVS, case)
    tokens = golden_video(data)
    selection = get_pruner("evs").select(tokens, int(data["num_retained"]))
    np.testing.assert_array_equal(selection.mask, data["mask"])
    later = int(data["tokens_per_frame"])
    np.testing.assert_allclose(selection.scores[later:], data["dissimilarity"][later:], rtol=0, atol=2e-6)


def plain_evs(tokens, keep):
    places = [tuple(place) for place in tokens.positions.tolist()]
    likeness, scores = cosines(tokens.embeddings), []
    for token, (frame, *place) in enumerate(places):
        earlier = [(f, other) for other, (f, *p) in enumerate(places) if p == place and f < frame]
        scores.append(1 - likeness[token, max(earlier)[1]] if earlier else 255.0)
    return sorted(sorted(range(len(places)), key=lambda token: -scores[token])[:keep])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 10**6), st.data())
def test_evs_by_its_definition_also_where_tokens_are_missing(frames, rows, columns, seed, data):
    whole = random_video(frames, rows, columns, seed)
    stays = torch.rand(len(whole), generator=torch.Generator().manual_seed(seed)) < 0.7
    stays[: rows * columns] = True
    tokens = whole[stays.nonzero()[:, 0]]
    keep = data.draw(st.integers(rows * columns, len(tokens)))
    assert get_pruner("evs").select(tokens, keep).index.tolist() == plain_evs(tokens, keep)


def test_evs_keeps_what_moves():
    still = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    frames = still.repeat(4, 1)
    for token in (8, 15, 23):
        frames[token] = -frames[token]
    # A place changes once more when it is again what it was.
    assert get_pruner("evs").select(video(4, 2, 3, frames), 11).index.tolist() == [*range(6), 8, 14, 15, 21, 23]


def test_evs_with_less_than_a_frame_spreads_it_and_says_so():
    tokens = random_video(3, 4, 4)
    with pytest.warns(UserWarning, match="16 tokens are more than 4: give a larger budget"):
        assert get_pruner("evs").select(tokens, 4).index.tolist() == [5, 7, 13, 15]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get_pruner("evs").select(tokens, 16).index.tolist() == list(range(16))


def test_evs_has_nothing_to_compare_in_an_image_and_says_so():
    model, inputs = clip_llama(), make_inputs(Row(1, 6))
    kept = []
    for name in ("evs", "grid"):
        with prune(model, name, keep=7) as session, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.generate(**inputs, **GREEDY)
        kept.append(session.reports[0].images[0].selection.index.tolist())
        assert [str(one.message) for one in caught if "evs" in str(one.message)] == (
            ["evs compares frames, and here is one: its tokens are spread evenly, as by grid; choose another method"]
            if name == "evs"
            else []
        )
    assert kept[0] == kept[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(get_pruner("evs").select(make_tokens(12), 12)) == 12


# VidCom2


@named(VIDCOM2)
def test_vidcom2_keeps_what_vllm_keeps(case):
    data = of(VIDCOM2, case)
    selection = get_pruner("vidcom2").select(golden_video(data), int(data["num_retained"]))
    np.testing.assert_array_equal(selection.mask, data["mask"])
    np.testing.assert_allclose(-selection.scores, data["similarity"].flatten(), rtol=1e-5, atol=0)


def plain_vidcom2(tokens, keep):
    rows, frames = tokens.embeddings.double().numpy(), tokens.positions[:, 0].numpy()
    half = rows[:, np.argsort(rows.var(0), kind="stable")[: max(1, rows.shape[1] // 2)]]
    unit = half / np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-12)

    def similarity(row, mean):
        squared = ((row - mean) ** 2).sum()
        return sum(np.exp(-squared / (2 * 2.0**power)) for power in range(-3, 2))

    to_video = np.array([similarity(row, unit.mean(0)) for row in unit])
    scores = to_video + [
        similarity(row, unit[frames == frame].mean(0)) for row, frame in zip(unit, frames, strict=True)
    ]
    present = sorted(set(frames))
    standing_out = np.array([-to_video[frames == frame].mean() / 0.01 for frame in present])
    standing_out = np.exp(standing_out - standing_out.max())
    standing_out /= standing_out.sum()
    kept = []
    for frame, weight in zip(present, standing_out, strict=True):
        mine = np.flatnonzero(frames == frame)
        share = min(1.0, keep / len(rows) * (1 + weight - standing_out.mean()))
        kept += sorted(mine, key=lambda token: scores[token])[: max(1, round(share * len(mine)))]
        # What float32 cannot tell apart is no test of it.
        assume(share == 1 or abs(share * len(mine) % 1 - 0.5) > 1e-4)
    assume(np.diff(np.sort(scores)).min(initial=1.0) > 1e-5)
    rest = sorted(set(range(len(rows))) - set(kept), key=lambda token: scores[token])
    return sorted((sorted(kept, key=lambda token: scores[token]) + rest)[:keep])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6), st.booleans(), st.data())
def test_vidcom2_by_its_definition(frames, rows, columns, seed, missing, data):
    tokens = random_video(frames, rows, columns, seed, width=9)
    if missing:
        stays = torch.rand(len(tokens), generator=torch.Generator().manual_seed(seed)) < 0.7
        stays[0] = True
        tokens = tokens[stays.nonzero()[:, 0]]
    keep = data.draw(st.integers(1, len(tokens)))
    assert get_pruner("vidcom2").select(tokens, keep).index.tolist() == plain_vidcom2(tokens, keep)


def test_vidcom2_gives_a_frame_that_stands_out_more():
    tokens = random_video(6, 5, 5, width=32)
    embeddings = tokens.embeddings + 3
    embeddings[50:75] -= 6
    counts = (
        get_pruner("vidcom2").select(video(6, 5, 5, embeddings), 60).index.div(25, rounding_mode="floor").bincount()
    )
    assert counts.argmax() == 2 and counts[2] > 10 and counts.min() >= 1


def test_vidcom2_tells_twins_by_their_number():
    tokens = random_video(2, 2, 3)
    twins = dataclasses.replace(tokens, embeddings=tokens.embeddings[torch.arange(12) // 2])
    for keep in range(1, 12):
        kept = set(get_pruner("vidcom2").select(twins, keep).index.tolist())
        assert all(token - 1 in kept for token in kept if token % 2)
