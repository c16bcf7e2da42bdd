"""Every model family against the same contract, on tiny models."""

from __future__ import annotations

import itertools
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from zoo_of_models import CASES, IMAGE, NEXT_SIZES, ONE_LENGTH, VIDEO, VIDEO_CASES, VIDEOS_ALONE, make_videos
from zooprune import ZooPrune, get_pruner, prune, sensitivity
from zooprune.budgeting import deal, spend
from zooprune.families import find_family
from zooprune.policy import Policy
from zooprune.pruners.random import RandomPrune
from zooprune.signals import find_signal

ONE_AXIS = [name for name in CASES if not name.startswith(("qwen2", "qwen3", "glm4"))]
#: Models that make one token of two by two patches.
MERGING = (
    "internvl", "qianfan_ocr", "gemma3", "idefics3", "smolvlm", "mistral3", "mistral_large4", "aya_vision",
    "cohere2_vision",
)  # fmt: skip
#: Models some of whose layers mix neighbours, or pick what to attend to, and so have no keys that could be masked.
WITHOUT_KEYS = ("qwen3_5", "lfm2_vl", "lfm2_vl_plain", "lfm3_vl", "glm5_next")
GREEDY = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def model(case):
    return case.model()


def pruner(keep):
    return get_pruner("random", keep=keep)


def encode(model, inputs):
    with torch.no_grad():
        return find_family(model).encode(model, "image", inputs)


def test_keeping_all_is_plain_generation_bit_for_bit(case, model):
    inputs = case.make(model, [[0], [case.kinds - 1, 0], []])
    plain = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
    with prune(model, pruner(1.0)):
        kept = model.generate(**inputs, **GREEDY, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(kept.sequences, plain.sequences)
    assert all(torch.equal(one, other) for one, other in zip(kept.logits, plain.logits, strict=True))


def test_a_batch_equals_its_rows(case, model):
    rows = [[0], [case.kinds - 1, 0], []]
    batch = case.make(model, rows)
    options = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
    with prune(model, ZooPrune(keep=3), positions="auto") as session, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        together = model.generate(**batch, **options)
        images = list(session.reports[-1].images)
        for number, row in enumerate(rows):
            alone = model.generate(**case.make(model, [row], seed=number), **options)
            assert torch.equal(alone.sequences[:, -4:], together.sequences[number : number + 1, -4:])
            for one, other in zip(alone.logits, together.logits, strict=True):
                torch.testing.assert_close(one[0], other[number], rtol=1e-4, atol=1e-4)
            if row:
                mine = [image for image in images if image.row == number]
                for one, other in zip(session.reports[-1].images, mine, strict=True):
                    assert torch.equal(one.selection.index, other.selection.index)


def test_bare_forward_passes_see_what_generate_sees(case, model):
    inputs = case.make(model, [[0], [case.kinds - 1, 0]])
    with torch.no_grad(), prune(model, pruner(3)) as session:
        said = model.generate(**inputs, **GREEDY)
        logits = model(**session.prepare(inputs)).logits[:, -1]
    assert torch.equal(logits.argmax(-1), said[:, inputs["input_ids"].shape[1]])


def test_original_positions_equal_a_dense_run_with_masked_keys(case, model):
    if case.name in WITHOUT_KEYS:
        pytest.skip("not all of its layers have keys that could be masked")
    if not find_family(model).takes_positions:
        pytest.skip("its generate takes no positions, which is refused: see below")
    inputs = case.make(model, [[case.kinds - 1, 0]])
    with torch.no_grad(), prune(model, pruner(3), positions="original") as session:
        prepared = session.prepare(inputs)
        pruned = model(**prepared).logits[:, -1]
        dense = dict(inputs)
        family = find_family(model)
        stays = kept_columns(session, inputs)
        numbers = torch.arange(stays.shape[1])[None]
        axes = family.axes(model, inputs, inputs["attention_mask"])
        dense["position_ids"] = numbers + family.first_position if axes is None else torch.cat([numbers[None], axes])
        dense["attention_mask"] = stays.long()
        expected = model(**dense).logits[:, -1]
    torch.testing.assert_close(pruned, expected, rtol=1e-5, atol=1e-5)


def test_generate_reads_the_positions_that_a_bare_forward_pass_reads(case, model):
    """Tokens keep their positions in a prompt of two images, wherever the model lets them."""
    inputs = case.make(model, [[case.kinds - 1, 0]])
    seen = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    with torch.no_grad(), prune(model, pruner(3)) as session:
        model.generate(**inputs, max_new_tokens=1)
        model(**session.prepare(inputs))
    hook.remove()
    generated, bare = seen
    if generated is None:
        generated = torch.arange(bare.shape[-1]).expand_as(bare) + find_family(model).first_position
    assert torch.equal(generated, bare)


@pytest.mark.parametrize("name", ["hyperclovax", "exaone"])
def test_positions_that_generate_would_drop_are_refused(name):
    model = CASES[name].model()
    with pytest.raises(ValueError, match="takes no positions"):
        prune(model, "zoo", keep=3, positions="original")
    with prune(model, "zoo", keep=3):
        pass


def kept_columns(session, inputs):
    """Return which columns of a one-row prompt stay, from what the reports say."""
    slots = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    stays = torch.ones(1, inputs["input_ids"].shape[1], dtype=torch.bool)
    encoded = encode(session.model, inputs)
    start = 0
    for visual, image in zip(encoded.visuals, session.reports[-1].images, strict=True):
        mine = slots[start : start + visual.length]
        stays[0, mine] = False
        stays[0, mine[visual.places[image.selection.index]]] = True
        start += visual.length
    return stays


@pytest.mark.parametrize("name", ONE_AXIS)
def test_contiguous_positions_equal_the_prompt_cut_by_hand(name):
    case = CASES[name]
    model = case.model()
    inputs = case.make(model, [[case.kinds - 1, 0]])
    with torch.no_grad(), prune(model, pruner(3), positions="contiguous") as session:
        pruned = model(**session.prepare(inputs)).logits[:, -1]
        stays = kept_columns(session, inputs)
    ids = inputs["input_ids"][stays][None]
    names = find_family(model).image_arguments
    with torch.no_grad():
        output = model.model.get_image_features(
            **{key: inputs[key] for key in names if key in inputs}, return_dict=True
        )
        rows = torch.cat([one.flatten(0, -2) for one in output.pooler_output])
        kept = rows[stays[inputs["input_ids"] == IMAGE]]
        is_list = not isinstance(output.pooler_output, torch.Tensor)
        by_hand = type(output)(pooler_output=[kept] if is_list else kept[None])
        types = {"token_type_ids": inputs["token_type_ids"][stays][None]} if "token_type_ids" in inputs else {}
        expected = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_encoder_outputs={"image": by_hand}, **types
        )
    torch.testing.assert_close(pruned, expected.logits[:, -1], rtol=1e-5, atol=1e-5)


MODES = {
    "beams": {"num_beams": 2},
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 7},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_generating_gives_the_prompt_back(case, model, mode):
    options = {**GREEDY, **MODES[mode]}
    inputs = case.make(model, [[0], [0]])
    with prune(model, pruner(3)):
        output = model.generate(**inputs, **options)
    count = 2 * options.get("num_return_sequences", 1)
    width = inputs["input_ids"].shape[1]
    assert output.shape == (count, width + 4)
    assert torch.equal(output[:, :width], inputs["input_ids"].repeat_interleave(count // 2, dim=0))


def test_the_projector_makes_the_embeddings_of_the_features(case, model):
    visuals = encode(model, case.make(model, [list(range(case.kinds))])).visuals
    for visual in visuals:
        tokens = visual.tokens
        if case.name == "llava_onevision" and len(tokens) % 16:
            continue  # Interpolated after the projector.
        torch.testing.assert_close(tokens.projector(tokens.features), tokens.embeddings, rtol=1e-4, atol=1e-5)


#: The families whose projector's first layer is run once, by the model.
SHARING = (
    "llava", "vipllava", "llava_next", "llava_next_video", "llava_onevision", "deepseek_vl", "internvl", "qianfan_ocr",
    "video_llava", "videollama3",
)  # fmt: skip


def test_what_the_first_layer_gave_is_kept_beside_its_tokens(case, model):
    for visual in encode(model, case.make(model, [list(range(case.kinds))])).visuals:
        tokens = visual.tokens
        hidden = tokens.signals.get("first_layer")
        assert (hidden is not None) == (case.name in SHARING)
        if hidden is not None:
            once = sensitivity.closed_form(tokens.projector, tokens.features, hidden=hidden)
            again = sensitivity.closed_form(tokens.projector, tokens.features)
            torch.testing.assert_close(once, again, rtol=1e-4, atol=1e-6)
            # It is what was given that is read, and not worked out again.
            assert not torch.allclose(
                sensitivity.closed_form(tokens.projector, tokens.features, hidden=hidden - 3), once, rtol=1e-4
            )


def test_sensitivity_is_that_of_the_real_projector(case, model):
    """Against Jacobians that autograd works out in float64."""
    tokens = encode(model, case.make(model, [[0]])).visuals[0].tokens
    rows = tokens.features[:3].double()
    reference = model_in_double(tokens.projector)
    jacobians = torch.stack([torch.autograd.functional.jacobian(reference, row[None])[0, :, 0] for row in rows])
    if sensitivity.is_linear(tokens.projector, tokens.features):
        assert torch.allclose(jacobians[0], jacobians[1])
        with pytest.warns(UserWarning, match="linear"):
            assert bool((fresh(ZooPrune).score(tokens) == 1).all())
        return
    if sensitivity.has_closed_form(tokens.projector):
        expected = jacobians.flatten(1).norm(dim=1) / rows.shape[1] ** 0.5
        actual = sensitivity.closed_form(tokens.projector, tokens.features[:3])
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=0)
        whole = sensitivity.closed_form(tokens.projector, tokens.features[:3], rank=10_000)
        torch.testing.assert_close(whole, actual, rtol=1e-3, atol=0)
    units = nn.functional.normalize(torch.randn(5, rows.shape[1], dtype=torch.float64), dim=1)
    expected = (jacobians @ units.T).norm(dim=1).mean(1)
    actual = sensitivity.jvp(tokens.projector, tokens.features[:3], directions=units)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=0)


def fresh(kind):
    from zooprune.pruners import zoo

    zoo._warned.clear()
    return kind()


def model_in_double(projector):
    state = {name: value.double() for name, value in (*projector.named_parameters(), *projector.named_buffers())}
    return lambda x: torch.func.functional_call(projector, state, (x,))


def test_which_sensitivity_is_exact(case, model):
    tokens = encode(model, case.make(model, [[0]])).visuals[0].tokens
    linear = sensitivity.is_linear(tokens.projector, tokens.features)
    kind = "linear" if linear else "closed form" if sensitivity.has_closed_form(tokens.projector) else "sampled"
    assert kind == find_family(model).sensitivity


def silenced(case):
    """Return a model in whose tower no patch sees another."""
    model = case.model()
    for name, parameter in model.model.named_parameters():
        if re.search(
            r"(vision|visual|image_tower).*(out_proj|attn\.proj|o_proj|projection_layer|attention\.proj)\.", name
        ):
            nn.init.zeros_(parameter)
    return model


def test_a_token_shows_the_patch_it_says_it_shows(case, model):
    """With attention out of the way, changing one patch moves the tokens at its place and no others."""
    kind = 1 if case.name == "llava_onevision" else case.kinds - 1
    inputs = case.make(model, [[kind]])
    silent = silenced(case)
    before = encode(silent, inputs).visuals
    pixel_name = find_family(silent).image_arguments[0]
    pixels = inputs[pixel_name]
    if "spatial_shapes" in inputs:
        pytest.skip("its patches come in rows with padding; see tests/test_tiles.py")
    grid = "image_grid_thw" in inputs
    places = [(3,), (9,), (20,)] if grid else list(itertools.product(range(leading(pixels)), (0, 2), (1, 3)))
    for place in places:
        changed = pixels.clone()
        if grid:
            changed[place[0]] += 1
            expected = (None, *divmod(place[0] // 4, int(inputs["image_grid_thw"][0, 2]) // 2))
        else:
            tile, row, column = place
            flat = changed.view(-1, *changed.shape[-3:])
            if not flat[tile].any() or not flat[tile, :, 14 * row, 14 * column].any():
                continue
            flat[tile, :, 14 * row : 14 * row + 14, 14 * column : 14 * column + 14] += 1
            factor = 2 if case.name in MERGING else 1
            expected = (tile, row // factor, column // factor)
        after = encode(silent, inputs | {pixel_name: changed}).visuals
        moved = []
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            gone = (one.tokens.features - other.tokens.features).abs().amax(1) > 1e-6
            moved += [(number, *where) for where in one.tokens.positions[gone].tolist()]
        if case.name == "llava_onevision":
            # Interpolation lets a patch reach its neighbours.
            assert all(where[2] == expected[0] for where in moved)
            continue
        # Unpadding may have taken the patch away.
        wanted = [] if not moved and case.name.startswith("llava_next") else [expected]
        assert [(None if grid else where[2], *where[3:]) for where in moved] == wanted


# Signals of the tower

#: Models whose tokens are a patch each.
UNMERGED = (
    "llava", "vipllava", "llava_next", "llava_next_video", "llava_onevision", "paligemma", "deepseek_vl",
    "deepseek_vl_hybrid",
)  # fmt: skip
SIGNALLING = [name for name in CASES if name not in ("hyperclovax", "video_llava")]


@pytest.fixture(scope="module", params=SIGNALLING)
def signalling(request):
    return CASES[request.param], CASES[request.param].model()


def test_signals_are_refused_where_there_are_none():
    class Wanting(RandomPrune):
        needs = ("tower_attention",)

    for name in CASES:
        model = CASES[name].model()
        if name in SIGNALLING:
            prune(model, Wanting(keep=3)).close()
        else:
            with pytest.raises(ValueError, match=r"reads tower_attention, which .* does not give"):
                prune(model, Wanting(keep=3))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_signals_come_with_every_token_and_change_nothing(signalling, attention):
    case, _ = signalling
    model = case.model()
    model.set_attn_implementation(attention)
    inputs = case.make(model, [list(range(case.kinds)), [0]])
    signals = [find_signal(name) for name in ("tower_attention", "tower_keys")]
    family = find_family(model)
    implementations = [module.config._attn_implementation for module in family.attentions(model)]
    with torch.no_grad():
        plain = family.encode(model, "image", inputs).visuals
        visuals = family.encode(model, "image", inputs, signals).visuals
    assert [module.config._attn_implementation for module in family.attentions(model)] == implementations
    for one, other in zip(plain, visuals, strict=True):
        assert torch.equal(one.tokens.features, other.tokens.features)
        assert torch.equal(one.tokens.embeddings, other.tokens.embeddings)
        for signal in signals:
            rows = other.tokens.signals[signal.name]
            assert len(rows) == len(other.tokens) and rows.dtype == torch.float32 and bool(rows.isfinite().all())
            assert len(rows.unique(dim=0)) > 1


def test_tower_attention_is_what_the_eager_tower_works_out(signalling, monkeypatch):
    case, model = signalling
    inputs = case.make(model, [list(range(case.kinds)), [0]])
    family, signal = find_family(model), find_signal("tower_attention")
    with torch.no_grad():
        patches = family.forward(model, "image", inputs, {}, [signal])[2]["tower_attention"][..., 0]
    eager = case.model()
    eager.set_attn_implementation("eager")
    read = family.layer(eager, None)
    attention = family.attentions(eager)[read]
    file = sys.modules[type(attention).__module__]
    original, weights, masks = file.eager_attention_forward, [], []

    def noting(module, query, key, value, attention_mask, **options):
        output = original(module, query, key, value, attention_mask, **options)
        if module is attention:
            weights.append(output[1])
            masks.append(attention_mask)
        return output

    monkeypatch.setattr(file, "eager_attention_forward", noting)
    with torch.no_grad():
        family.encode(eager, "image", inputs)
    received = []
    for one, mask in zip(weights, masks, strict=True):
        if family.class_token(eager):
            received.append(one[:, :, 0].mean(1)[:, 1:])
            continue
        # Padding asks nothing: of it nobody may see anything.
        allowed = torch.ones(len(one), 1, one.shape[2]) if mask is None else (mask == 0)[:, 0].float()
        asking = allowed.amax(1)[..., None]
        # Where images are packed into a sequence, the mean is over an image.
        received.append((one.mean(1) * asking).sum(1) / (allowed * asking).sum(1).clamp_min(1))
    torch.testing.assert_close(patches, torch.cat(received, dim=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["tower_attention", "tower_received", "tower_joint_attention/-1", "tower_context@1.1"])
def test_images_that_are_packed_together_have_the_signals_they_have_alone(signalling, name):
    case, model = signalling
    family, signal = find_family(model), find_signal(name)
    with torch.no_grad():
        both = family.encode(model, "image", case.make(model, [[case.kinds - 1], [0]]), [signal]).visuals
        alone = [
            family.encode(model, "image", case.make(model, [[kind]], seed=number), [signal]).visuals[0]
            for number, kind in enumerate((case.kinds - 1, 0))
        ]
    for one, other in zip(both, alone, strict=True):
        torch.testing.assert_close(one.tokens.signals[name], other.tokens.signals[name], rtol=1e-4, atol=1e-6)


def test_signals_are_the_means_of_a_tokens_own_patches(signalling):
    case, _ = signalling
    kind = 1 if case.name == "llava_onevision" else case.kinds - 1
    silent = silenced(case)
    check_own_patches(case.name, silent, "image", case.make(silent, [[kind]]))


@pytest.mark.parametrize("name", [name for name in VIDEO_CASES if name in SIGNALLING])
def test_signals_of_videos_are_the_means_of_a_tokens_own_patches(name):
    silent = silenced(CASES[name])
    check_own_patches(name, silent, "video", make_videos(name, silent, [[4]]))


def check_own_patches(name, silent, modality, inputs):
    """A key of the first layer depends on its own patch alone."""
    family, signal = find_family(silent), find_signal("tower_keys/0")
    argument = family.arguments(modality)[0]

    def keys(inputs):
        """Return the keys of all patches and of all tokens, and the features of these."""
        with torch.no_grad():
            patches = family.forward(silent, modality, inputs, {}, [signal])[2][signal.name]
            visuals = family.encode(silent, modality, inputs, [signal]).visuals
        tokens = torch.cat([visual.tokens.signals[signal.name] for visual in visuals])
        return patches.flatten(0, 1), tokens, torch.cat([visual.tokens.features for visual in visuals])

    patches, tokens, features = keys(inputs)
    pixels = inputs[argument]
    flat = pixels.flatten(0, -4) if pixels.ndim > 3 else pixels.flatten(0, -2)
    for number in range(0, len(flat), 1 if flat.ndim == 4 else 5):
        changed = pixels.clone()
        area = changed.view(flat.shape)[number]
        if area.ndim == 3:
            area = area[:, 14:28, :14]
        if not area.any():
            continue
        area += 1
        new_patches, new_tokens, new_features = keys(inputs | {argument: changed})
        moved = (new_tokens - tokens).abs().amax(1) > 1e-6
        assert torch.equal(moved, (new_features - features).abs().amax(1) > 1e-6)
        whole, mean = (new_patches - patches).sum(0), (new_tokens - tokens).sum(0)
        if int(moved.sum()) == 1:
            count = 1 if modality == "image" and name in UNMERGED else 4
            torch.testing.assert_close(mean * count, whole, rtol=1e-3, atol=1e-4)
        else:
            # Unpadding leaves patches out, and interpolation lets one reach its neighbours.
            assert name.startswith("llava_")


def leading(pixels):
    return int(np.prod(pixels.shape[:-3]))


# Budgets, tiles and newlines


def random_sizes(count):
    generator = np.random.default_rng(0)
    return [tuple(int(side) for side in generator.integers(10, 300, size=2)) for _ in range(count)]


@pytest.fixture(scope="module")
def thirty_images():
    """Thirty sizes and aspect ratios through LLaVA-NeXT's tiles, each encoded once."""
    import zoo_of_models

    case = CASES["llava_next"]
    model = case.model()
    visuals = []
    for size in random_sizes(30):
        zoo_of_models.NEXT_SIZES = (size,)
        try:
            inputs = case.make(model, [[0]])
        finally:
            zoo_of_models.NEXT_SIZES = NEXT_SIZES
        visuals.append(encode(model, inputs).visuals[0])
    return visuals


@pytest.mark.parametrize("scope", ["image", "tile"])
@pytest.mark.parametrize("newlines", ["drop", "keep", "rows"])
@pytest.mark.parametrize("keep", [1, 7, 23, 64, 0.3, 10_000])
def test_budgets_are_exact(thirty_images, scope, newlines, keep):
    for visual in thirty_images:
        total = visual.length
        expected = min(keep, total) if isinstance(keep, int) else int(keep * total + 0.5)
        selection, kept = spend(pruner(keep), visual, Policy(scope=scope, newlines=newlines))
        assert int(kept.sum()) == expected
        assert bool(kept[visual.places[selection.index]].all())
        separators = torch.ones_like(kept)
        separators[visual.places] = False
        if newlines == "drop" and expected <= len(visual.tokens):
            assert not bool((kept & separators).any())
        if newlines == "keep" and expected > int(separators.sum()):
            assert bool(kept[separators].all())


def test_rows_keep_their_newline(thirty_images):
    for visual in thirty_images:
        selection, kept = spend(pruner(20), visual, Policy(scope="image", newlines="rows"))
        ends = visual.breaks[selection.index]
        assert bool(kept[ends[ends >= 0]].all())
        assert len(selection) < 20 or not bool((ends >= 0).any())


def test_every_row_ends_with_its_newline(thirty_images):
    for visual in thirty_images:
        tiles = visual.tokens.positions[:, 1]
        for place, end, tile in zip(visual.places.tolist(), visual.breaks.tolist(), tiles.tolist(), strict=True):
            if tile == 0:
                assert end == -1
            else:
                between = set(range(place, end))
                assert end > place and between <= set(visual.places.tolist())


def test_tiles_share_the_budget_evenly(thirty_images):
    for visual in thirty_images:
        selection, _ = spend(pruner(17), visual, Policy(scope="tile", newlines="drop"))
        positions = visual.tokens.positions
        counts = [int((positions[selection.index, 1] == tile).sum()) for tile in positions[:, 1].unique()]
        sizes = [int((positions[:, 1] == tile).sum()) for tile in positions[:, 1].unique()]
        assert sum(counts) == min(17, len(visual.tokens))
        fair = 17 // len(counts)
        assert all(count >= min(fair, size) for count, size in zip(counts, sizes, strict=True))


@pytest.mark.parametrize(
    ("budget", "sizes", "shares"),
    [
        (10, [5, 5, 5], [4, 3, 3]),
        (10, [1, 5, 5], [1, 5, 4]),
        (2, [4, 4, 4], [1, 1, 0]),
        (9, [3, 3, 3], [3, 3, 3]),
        (14, [1, 1, 5, 9], [1, 1, 5, 7]),
    ],
)
def test_dealing(budget, sizes, shares):
    assert deal(budget, sizes) == shares


# What is refused


def test_beams_over_prompts_that_keep_different_numbers_are_refused_where_they_cannot_be_told_apart():
    case = CASES["internvl"]
    model = case.model()
    inputs = case.make(model, [[0], [1]])
    with prune(model, pruner(0.5)) as session, pytest.raises(ValueError, match="cannot copy prompts"):
        model.generate(**inputs, **GREEDY, num_beams=2)
    with prune(model, pruner(3)):
        assert model.generate(**inputs, **GREEDY, num_beams=2).shape == (2, inputs["input_ids"].shape[1] + 4)
    assert not session.reports


def test_a_budget_above_one_images_tokens_cuts_the_other():
    case = CASES["internvl"]
    model = case.model()
    with prune(model, pruner(6)) as session:
        model.generate(**case.make(model, [[0], [1]]), **GREEDY)
    assert [len(image.selection) for image in session.reports[0].images] == [4, 6]


def test_videos_where_there_are_none_are_refused():
    case = CASES["llava"]
    model = case.model()
    inputs = case.make(model, [[0]]) | {"pixel_values_videos": torch.zeros(1, 2, 3, 56, 56)}
    with prune(model, pruner(3)), pytest.raises(ValueError, match="videos are not supported"):
        model.generate(**inputs)


def test_positions_need_what_the_processor_returned():
    case = CASES["qwen2_5_vl"]
    model = case.model()
    inputs = case.make(model, [[0]])
    del inputs["mm_token_type_ids"]
    with prune(model, pruner(3)), pytest.raises(ValueError, match="mm_token_type_ids"):
        model.generate(**inputs)


# Videos


@pytest.fixture(scope="module", params=VIDEO_CASES)
def film(request):
    return request.param, CASES[request.param].model()


def clips(name):
    """Return rows of clips, of different numbers of frames where the model takes such."""
    return [[4], [4, 4], []] if name in ONE_LENGTH else [[4], [2, 5], []]


def test_videos_and_images_kept_whole_change_nothing(film):
    name, model = film
    inputs = make_videos(name, model, clips(name))
    options = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
    plain = model.generate(**inputs, **options)
    with prune(model, pruner(1.0)):
        kept = model.generate(**inputs, **options)
    assert all(torch.equal(one, other) for one, other in zip(kept.logits, plain.logits, strict=True))


def test_a_batch_of_videos_equals_its_rows(film):
    name, model = film
    rows = clips(name)
    options = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
    with prune(model, ZooPrune(keep=7)) as session:
        together = model.generate(**make_videos(name, model, rows), **options)
        images = session.reports[-1].images
        assert all(len(image.selection) == min(7, image.selection.total) for image in images)
        for number, row in enumerate(rows):
            alone = model.generate(**make_videos(name, model, [row], seed=number), **options)
            for one, other in zip(alone.logits, together.logits, strict=True):
                torch.testing.assert_close(one[0], other[number], rtol=1e-4, atol=1e-4)
            if row:
                mine = [image for image in images if image.row == number]
                for one, other in zip(session.reports[-1].images, mine, strict=True):
                    assert (one.modality, one.selection.index.tolist()) == (
                        other.modality, other.selection.index.tolist()
                    )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_generating_takes_videos(film, mode):
    name, model = film
    inputs = make_videos(name, model, [[4], [4]])
    if name == "glm5_next" and mode not in ("static cache", "no cache"):
        with pytest.raises((ValueError, IndexError)):
            model.generate(**inputs, **GREEDY | MODES[mode])
        pytest.skip("transformers looks for a placeholder of videos, which this model does not have")
    with prune(model, pruner(7)):
        greedy = model.generate(**inputs, **GREEDY)
        output = model.generate(**inputs, **GREEDY | MODES[mode])
    width = inputs["input_ids"].shape[1]
    assert torch.equal(output[:: len(output) // 2, :width], inputs["input_ids"])
    if mode not in ("beams", "samples"):
        assert torch.equal(output, greedy)


@pytest.mark.parametrize(("scope", "fewest", "most"), [("tile", 2, 2), ("image", 0, 8)])
def test_videos_are_cut_by_the_clip_or_by_the_frame(film, scope, fewest, most):
    name, model = film
    inputs = make_videos(name, model, [[4]])
    with torch.no_grad(), prune(model, ZooPrune(keep=8), scope=scope) as session:
        said = model.generate(**inputs, **GREEDY)
        logits = model(**session.prepare(inputs)).logits[:, -1]
    assert torch.equal(logits.argmax(-1), said[:, inputs["input_ids"].shape[1]])
    (video,) = (image for image in session.reports[0].images if image.modality == "video")
    assert len(video.selection) == 8
    frames = video.positions[video.selection.index, 0]
    counts = [int((frames == frame).sum()) for frame in range(4)]
    assert sum(counts) == 8 and min(counts) >= fewest and max(counts) <= most


def test_the_clips_of_a_prompt_share_one_budget(film):
    name, model = film
    with prune(model, ZooPrune(keep=9), scope="prompt") as session:
        model.generate(**make_videos(name, model, clips(name)), **GREEDY)
    videos = [image for image in session.reports[0].images if image.modality == "video"]
    assert [(video.row, len(video.selection)) for video in videos] == [(0, 9), (1, 9)]
    assert videos[1].positions[:, 0].unique().tolist() == list(range(sum(clips(name)[1])))


def test_frames_are_numbered(film):
    name, model = film
    with torch.no_grad():
        (video,) = find_family(model).encode(model, "video", make_videos(name, model, [[4]])).visuals
    positions = video.tokens.positions
    assert positions[:, 0].unique().tolist() == [0, 1, 2, 3]
    assert len(positions.unique(dim=0)) == len(positions)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", *VIDEOS_ALONE])
def test_pruned_videos_keep_their_positions(name):
    """Against a dense run in which no key of a dropped token is seen."""
    model = CASES[name].model()
    inputs = make_videos(name, model, [[2, 5]])
    with torch.no_grad(), prune(model, pruner(7)) as session:
        pruned = model(**session.prepare(inputs)).logits[:, -1]
        ids, stays = inputs["input_ids"], torch.ones_like(inputs["input_ids"], dtype=torch.bool)
        for modality, token in (("video", IMAGE if name in VIDEOS_ALONE else VIDEO), ("image", IMAGE)):
            kept = [one.selection.mask for one in session.reports[0].images if one.modality == modality]
            if kept:
                stays[ids == token] = torch.cat(kept)
        axes = find_family(model).axes(model, inputs, inputs["attention_mask"])
        numbers = torch.arange(ids.shape[1])[None, None]
        dense = inputs | {"position_ids": torch.cat([numbers, axes]), "attention_mask": stays.long()}
        expected = model(**dense).logits[:, -1]
    torch.testing.assert_close(pruned, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", VIDEOS_ALONE)
def test_images_beside_videos_are_refused_where_they_cannot_be_told_apart(name):
    model = CASES[name].model()
    inputs = CASES[name].make(model, [[0]]) | make_videos(name, model, [[4]])
    with prune(model, pruner(3)), pytest.raises(ValueError, match="either images or videos"):
        model.generate(**inputs)


def test_tokens_that_the_model_leaves_out_of_a_video_are_left_out():
    """VideoLLaMA 3: pruning chooses among those that show something new."""
    model = CASES["videollama3"].model()
    inputs = make_videos("videollama3", model, [[4]])
    stays = torch.ones(4, 6, dtype=torch.bool)
    stays[1, ::2] = stays[3] = False
    held = (inputs["input_ids"][0] == VIDEO).nonzero()[:, 0]
    columns = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    columns[held[int(stays.sum()) :]] = False
    for name in ("input_ids", "attention_mask"):
        inputs[name] = inputs[name][:, columns]
    inputs["video_compression_mask"] = stays.flatten()
    options = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
    plain = model.generate(**inputs, **options)
    with prune(model, pruner(1.0)):
        kept = model.generate(**inputs, **options)
    assert all(torch.equal(one, other) for one, other in zip(kept.logits, plain.logits, strict=True))
    with prune(model, pruner(5)) as session:
        model.generate(**inputs, **GREEDY)
    (video,) = (image for image in session.reports[0].images if image.modality == "video")
    frame, row, column = stays.view(4, 2, 3).nonzero().unbind(1)
    assert torch.equal(video.positions, torch.stack([frame, 0 * frame, row, column], dim=1))
    assert len(video.selection) == 5
