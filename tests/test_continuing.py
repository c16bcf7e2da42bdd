"""Conversations that go on from the cache of a pruned prompt."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from transformers import DynamicCache

from conftest import METHODS, Row, cached, make_inputs
from zoo_of_models import CASES, IMAGE, VOCABULARY, make_videos
from zooprune import ZooPrune, get_pruner, prune
from zooprune.cache_names import CACHE
from zooprune.families import find_family
from zooprune.pruners import pruner_class

NEW = 4
OPTIONS = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def model(case):
    return case.model()


def longer(ids, inputs, more=5, seed=0):
    """Return a conversation so far with words appended, with its mask."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(10, VOCABULARY, (len(ids), more), generator=generator)
    whole = torch.cat([ids, words], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(ids), whole.shape[1] - inputs["input_ids"].shape[1])], 1)
    return {"input_ids": whole, "attention_mask": mask.long()}


def all_again(inputs, turn):
    """Return what to send without a cache: the images and all that is per token once more."""
    fresh = dict(inputs) | turn
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            rest = turn["input_ids"].shape[1] - inputs[name].shape[1]
            fresh[name] = torch.cat([inputs[name], inputs[name].new_zeros(len(inputs[name]), rest)], dim=1)
    return fresh


@pytest.mark.parametrize("positions", ["auto", "contiguous", "original"])
def test_going_on_gives_what_sending_all_again_gives(case, model, positions):
    if not find_family(model).continues:
        pytest.skip("all of its prompt sees all of it, so nothing can be added: see the refusal below")
    if positions == "original" and not find_family(model).takes_positions:
        pytest.skip("its generate takes no positions, which is refused: see test_model_families.py")
    inputs = case.make(model, [[0], [case.kinds - 1, 0]])
    with prune(model, get_pruner("random", keep=3), positions=positions) as session:
        first = model.generate(**inputs, **OPTIONS)
        turn = longer(first.sequences, inputs)
        second = model.generate(**turn, **cached(first), **OPTIONS)
        again = model.generate(**all_again(inputs, turn), **OPTIONS)
        assert torch.equal(second.sequences, again.sequences)
        for one, other in zip(second.logits, again.logits, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        turn = longer(second.sequences, inputs, seed=1)
        third = model.generate(**turn, **cached(second), **OPTIONS)
        again = model.generate(**all_again(inputs, turn), **OPTIONS)
    assert torch.equal(third.sequences, again.sequences)
    assert len(session.reports) == 3


def test_what_all_sees_cannot_go_on():
    case = CASES["paligemma"]
    model = case.model()
    inputs = case.make(model, [[0]])
    with prune(model, "random", keep=3):
        first = model.generate(**inputs, **OPTIONS)
        with pytest.raises(ValueError, match="cannot go on from a cache"):
            model.generate(**longer(first.sequences, inputs), **cached(first))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
def test_videos_go_on(name):
    model = CASES[name].model()
    inputs = make_videos(name, model, [[4]])
    with prune(model, get_pruner("random", keep=7)):
        first = model.generate(**inputs, **OPTIONS)
        turn = longer(first.sequences, inputs)
        second = model.generate(**turn, **cached(first), **OPTIONS)
        again = model.generate(**all_again(inputs, turn), **OPTIONS)
    assert torch.equal(second.sequences, again.sequences)


def test_old_pixels_that_come_along_are_not_read_again(case, model):
    if not find_family(model).continues:
        pytest.skip("cannot go on")
    inputs = case.make(model, [[0]])
    with prune(model, get_pruner("random", keep=3)) as session:
        first = model.generate(**inputs, **OPTIONS)
        turn = longer(first.sequences, inputs)
        # Two caches, since a turn adds to the one it is given.
        caches = [first[CACHE], copy.deepcopy(first[CACHE])]
        without = model.generate(**turn, **{CACHE: caches[0]}, **OPTIONS)
        along = model.generate(**all_again(inputs, turn), **{CACHE: caches[1]}, **OPTIONS)
    assert torch.equal(without.sequences, along.sequences)
    assert len(session.reports) == 1


def test_a_cache_that_the_caller_brought(llava):
    inputs, cache = make_inputs(Row(1, 6)), DynamicCache()
    with prune(llava, ZooPrune(keep=7)):
        first = llava.generate(**inputs, **{CACHE: cache}, max_new_tokens=NEW, do_sample=False)
        turn = longer(first, inputs)
        second = llava.generate(**turn, **{CACHE: cache}, max_new_tokens=NEW, do_sample=False)
        assert torch.equal(second, llava.generate(**inputs | turn, max_new_tokens=NEW, do_sample=False))


# Methods that read the question would choose anew for a longer one; what is in the cache is what they chose first.
@pytest.mark.parametrize("name", [name for name in METHODS if not pruner_class(name).query_aware])
def test_every_method_goes_on(llava, name):
    inputs = make_inputs(Row(2, 6))
    with prune(llava, name, keep=7):
        first = llava.generate(**inputs, **OPTIONS)
        turn = longer(first.sequences, inputs)
        second = llava.generate(**turn, **cached(first), **OPTIONS)
        again = llava.generate(**inputs | turn, **OPTIONS)
    assert torch.equal(second.sequences, again.sequences)


@pytest.mark.parametrize("copies", [1, 3])
def test_samples_go_on_each_by_itself(llava, copies):
    inputs = make_inputs(Row(1, 6))
    torch.manual_seed(0)
    with prune(llava, ZooPrune(keep=7)):
        first = llava.generate(
            **inputs, **OPTIONS | {"do_sample": True, "num_return_sequences": copies, "suppress_tokens": [IMAGE]}
        )
        masks = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"].repeat(copies, 1)}
        turn = longer(first.sequences, masks)
        second = llava.generate(**turn, **cached(first), **OPTIONS)
        pixels = inputs["pixel_values"].repeat(copies, 1, 1, 1)
        again = llava.generate(**turn, pixel_values=pixels, **OPTIONS)
    assert torch.equal(second.sequences, again.sequences)


def test_a_limit_counts_all_of_the_conversation(llava):
    inputs = make_inputs(Row(1, 6))
    with prune(llava, ZooPrune(keep=7)):
        first = llava.generate(**inputs, **OPTIONS)
        turn = longer(first.sequences, inputs)
        limit = turn["input_ids"].shape[1] + 3
        assert llava.generate(**turn, **cached(first), max_length=limit).shape[1] == limit


def outside(model, turn, cache):
    return model.generate(**turn, **{CACHE: cache})


def by_hand(model, turn, cache):
    return model(input_ids=turn["input_ids"][:, -1:], **{CACHE: cache})


@pytest.mark.parametrize("use", [outside, by_hand])
def test_outside_of_a_session_the_cache_is_refused(case, model, use):
    inputs = case.make(model, [[0]])
    with prune(model, get_pruner("random", keep=3)):
        first = model.generate(**inputs, **OPTIONS)
    turn = longer(first.sequences, inputs)
    for cache in (first[CACHE], copy.deepcopy(first[CACHE])):
        with pytest.raises(ValueError, match="the cache holds a pruned prompt"):
            use(model, turn, cache)
    with prune(model, get_pruner("random", keep=3)):
        if find_family(model).continues:
            model.generate(**turn, **cached(first), max_new_tokens=1)


def test_what_does_not_go_on_is_explained(llava):
    inputs = make_inputs(Row(1, 6))
    with prune(llava, ZooPrune(keep=7)) as session:
        first = llava.generate(**inputs, **OPTIONS)
        cache, turn = first[CACHE], longer(first.sequences, inputs)
        other = turn | {"input_ids": turn["input_ids"].clone()}
        other["input_ids"][0, -7] += 1
        with pytest.raises(ValueError, match="does not go on from"):
            llava.generate(**other, **{CACHE: cache})
        with pytest.raises(ValueError, match="does not go on from"):
            llava.generate(first.sequences[:, :-1], **{CACHE: cache})
        with pytest.raises(ValueError, match="holds 1 conversations, but input_ids has 2 rows"):
            llava.generate(turn["input_ids"].repeat(2, 1), **{CACHE: cache})
        image = longer(torch.cat([first.sequences, torch.full((1, 36), IMAGE)], 1), inputs)
        with pytest.raises(ValueError, match="new images cannot be added"):
            llava.generate(**image, pixel_values=inputs["pixel_values"].repeat(2, 1, 1, 1), **{CACHE: cache})
        with pytest.raises(ValueError, match="go on with generate"):
            session.prepare(turn | {CACHE: cache})
        beams = llava.generate(**inputs, **OPTIONS | {"num_beams": 2})
        with pytest.raises(ValueError, match="beam search"):
            llava.generate(**longer(beams.sequences, inputs), **cached(beams))


def test_a_cache_filled_by_hand_is_not_taken_for_a_whole_one(llava):
    inputs = make_inputs(Row(1, 6))
    with torch.no_grad(), prune(llava, ZooPrune(keep=7)) as session:
        out = llava(**session.prepare(inputs), use_cache=True)
        with pytest.raises(ValueError, match="holds less than the images of this prompt"):
            llava.generate(**longer(inputs["input_ids"], inputs), **cached(out))


def test_whole_caches_go_on_as_ever(llava):
    inputs = make_inputs(Row(1, 6))
    first = llava.generate(**inputs, **OPTIONS)
    turn = longer(first.sequences, inputs)
    plain = llava.generate(**turn, **{CACHE: copy.deepcopy(first[CACHE])}, **OPTIONS)
    with prune(llava, ZooPrune(keep=7)):
        assert torch.equal(llava.generate(**turn, **cached(first), **OPTIONS).sequences, plain.sequences)


def test_a_cache_is_freed_with_its_holder(llava):
    with prune(llava, ZooPrune(keep=7)):
        first = llava.generate(**make_inputs(Row(1, 6)), **OPTIONS)
    cache = weakref.ref(first[CACHE])
    del first
    gc.collect()
    assert cache() is None


@pytest.mark.skipif(CACHE == "past_key_values", reason="from transformers 5.24 on, the cache has a new and an old name")
def test_a_cache_by_its_old_name_goes_on(llava):
    inputs = make_inputs(Row(1, 6))
    with prune(llava, ZooPrune(keep=7)):
        first = llava.generate(**inputs, **OPTIONS)
        turn, again = longer(first.sequences, inputs), copy.deepcopy(first[CACHE])
        expected = llava.generate(**turn, **cached(first), **OPTIONS)
        with pytest.warns(FutureWarning, match="past_key_values"):
            found = llava.generate(**turn, past_key_values=again, **OPTIONS)
    assert torch.equal(found.sequences, expected.sequences)
