"""Sessions beside other things people do with a model: copies, patches, compilation, wrappers, odd arguments."""

from __future__ import annotations

import copy
import gc
import types
import weakref

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from conftest import IMAGE, Row, cached, clip_llama, make_inputs
from zoo_of_models import CASES
from zooprune import ZooPrune, get_pruner, prune
from zooprune.generation import session_of
from zooprune.sensitivity import weight_cache

GREEDY = {"max_new_tokens": 3, "do_sample": False}


# `generate` on the instance


def test_a_copy_of_the_model_is_not_pruned(llava):
    inputs = make_inputs(Row(1, 6))
    plain = llava.generate(**inputs, **GREEDY)
    with prune(llava, ZooPrune(keep=7)) as session:
        twin = copy.deepcopy(llava)
        assert torch.equal(twin.generate(**inputs, **GREEDY), plain)
        assert session.reports == []
        with prune(twin, ZooPrune(keep=3)) as other:
            twin.generate(**inputs, **GREEDY)
            llava.generate(**inputs, **GREEDY)
    assert [report.kept for report in (*session.reports, *other.reports)] == [7, 3]


def test_a_session_that_nobody_holds_can_be_closed(llava):
    prune(llava, ZooPrune(keep=7))
    gc.collect()
    inputs = make_inputs(Row(1, 6))
    with pytest.raises(ValueError, match="session_of"):
        prune(llava, "random")
    session = session_of(llava)
    llava.generate(**inputs, **GREEDY)
    assert session.reports[0].kept == 7
    session.close()
    assert session_of(llava) is None and "generate" not in vars(llava)


def test_a_model_that_is_pruned_can_be_freed():
    model = clip_llama()
    prune(model, ZooPrune(keep=7))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def patched(model):
    """Put a patch of somebody else's over `generate`, which counts calls."""
    beneath, calls = model.generate, []

    def generate(*args, **kwargs):
        calls.append(1)
        return beneath(*args, **kwargs)

    model.generate = generate
    return generate, calls


def test_somebody_elses_patch_beneath_comes_back(llava):
    patch, calls = patched(llava)
    with prune(llava, ZooPrune(keep=7)) as session:
        llava.generate(**make_inputs(Row(1, 6)), **GREEDY)
    assert llava.generate is patch and calls == [1] and session.reports[0].kept == 7


def test_somebody_elses_patch_on_top_stays(llava):
    inputs = make_inputs(Row(1, 6))
    plain = llava.generate(**inputs, **GREEDY)
    session = prune(llava, ZooPrune(keep=7))
    patch, calls = patched(llava)
    llava.generate(**inputs, **GREEDY)
    session.close()
    assert llava.generate is patch
    assert torch.equal(llava.generate(**inputs, **GREEDY), plain)
    assert calls == [1, 1] and len(session.reports) == 1


def test_a_patch_that_is_taken_away_meanwhile_is_no_trouble(llava):
    session = prune(llava, ZooPrune(keep=7))
    del llava.generate
    session.close()
    assert "generate" not in vars(llava)


def test_a_closed_session_is_not_entered_again(llava):
    session = prune(llava, ZooPrune(keep=7))
    with session:
        pass
    with pytest.raises(ValueError, match="this session is closed"), session:
        pass


def test_all_arguments_may_be_positional(llava):
    class Word(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([17]), 0.0)

    inputs = make_inputs(Row(1, 6))
    ids = inputs.pop("input_ids")
    with prune(llava, ZooPrune(keep=7)) as session:
        out = llava.generate(ids, None, LogitsProcessorList([Word()]), **inputs, max_new_tokens=2)
    assert out[0, -2:].tolist() == [17, 17] and session.reports[0].kept == 7


def test_the_signature_is_that_of_generate(llava):
    with prune(llava, ZooPrune(keep=7)):
        assert llava.generate.__name__ == "generate" and llava.generate.__doc__ == type(llava).generate.__doc__


# Compiled models


@pytest.mark.parametrize("where", ["projector", "projector as a wrapper", "get_image_features", "tower"])
def test_parts_that_are_compiled_are_seen(where):
    inputs = make_inputs(Row(1, 6))
    # VisionZip calls the projector by itself, with other shapes, for which it would be compiled anew.
    method = "diversity" if where.startswith("projector") else "visionzip"
    plain = clip_llama()
    with prune(plain, method, keep=7) as expected:
        said = plain.generate(**inputs, **GREEDY)
    model = clip_llama()
    inner, compiled = model.model, []

    def backend(graph, _examples):
        compiled.append(graph)
        return graph.forward

    if where == "projector":
        inner.multi_modal_projector.compile(backend=backend)
    elif where == "projector as a wrapper":
        inner.multi_modal_projector = torch.compile(inner.multi_modal_projector, backend=backend)
    elif where == "tower":
        inner.vision_tower.compile(backend=backend)
    else:
        inner.get_image_features = torch.compile(inner.get_image_features, backend=backend)
    model.generate(**inputs, **GREEDY)
    before = len(compiled)
    with prune(model, method, keep=7) as session:
        assert torch.equal(model.generate(**inputs, **GREEDY), said)
    assert torch.equal(session.reports[0].images[0].selection.index, expected.reports[0].images[0].selection.index)
    # What was compiled is used again afterwards, and nothing was compiled anew.
    model.generate(**inputs, **GREEDY)
    assert len(compiled) == before > 0


# Arguments


def test_numbers_of_numpy_are_budgets(llava):
    for keep in (np.int64(7), np.float32(7 / 36), np.int8(7)):
        with prune(llava, ZooPrune(keep=keep)) as session:
            llava.generate(**make_inputs(Row(1, 6)), **GREEDY)
        assert session.reports[0].kept == 7


@pytest.mark.parametrize("name", ["pixel_values", "input_ids"])
@pytest.mark.parametrize("form", [list, np.asarray])
def test_what_is_no_tensor_is_explained(llava, name, form):
    inputs = make_inputs(Row(1, 6))
    inputs[name] = form(inputs[name].tolist())
    with (
        prune(llava, ZooPrune(keep=7)),
        pytest.raises(TypeError, match=f'{name} must be a tensor.*return_tensors="pt"'),
    ):
        llava.generate(**inputs, **GREEDY)


def test_a_limit_below_the_prompt_is_explained(llava):
    with prune(llava, ZooPrune(keep=7)), pytest.raises(ValueError, match="max_length=20 leaves no room"):
        llava.generate(**make_inputs(Row(1, 6)), max_length=20)


def test_pixels_under_another_name_are_refused(llava):
    inputs = make_inputs(Row(1, 6))
    inputs["pixel_values_images"] = inputs.pop("pixel_values")
    with prune(llava, ZooPrune(keep=7)) as session:
        for call in (llava.generate, lambda **given: session.prepare(given)):
            with pytest.raises(ValueError, match="pixel_values_images cannot be pruned"):
                call(**inputs)


@pytest.mark.parametrize("name", ["inputs_embeds", "mm_encoder_outputs"])
def test_images_that_come_hidden_are_refused(llava, name):
    with prune(llava, ZooPrune(keep=7)), pytest.raises(ValueError, match=f"{name} cannot be used while pruning"):
        llava.generate(**make_inputs(Row(0, 6)), **{name: torch.zeros(1, 7, 32)})


# Forward passes by hand


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("keep", [1.0, 3])
def test_decoding_by_hand_goes_on_as_generate_does(name, keep):
    """Also after another call has left the model with other positions."""
    case = CASES[name]
    model = case.model()
    # Called bare, the models themselves count padding, so that only single prompts can be compared.
    inputs = case.make(model, [[case.kinds - 1, 0]])
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), prune(model, get_pruner("random", keep=keep)) as session:
        said = model.generate(**inputs, **options)
        model.generate(**case.make(model, [[0]], seed=7), max_new_tokens=2)
        prepared = session.prepare(inputs)
        out = model(**prepared, use_cache=True)
        logits, last = [out.logits[:, -1]], prepared["position_ids"][..., -1:]
        while len(logits) < 5:
            # With several images tokens keep their positions, which models without M-RoPE cannot count on from.
            places = {"position_ids": last + len(logits)} if last.ndim == 2 else {}
            out = model(input_ids=logits[-1].argmax(-1, keepdim=True), **cached(out), **places)
            logits.append(out.logits[:, -1])
    for one, other in zip(said.logits, logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_loss_reaches_tower_and_projector(llava):
    inputs = make_inputs(Row(1, 6))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    llava(**inputs, labels=labels).loss.backward()
    plain = {name: parameter.grad.clone() for name, parameter in llava.named_parameters() if parameter.grad is not None}
    for keep in (1.0, 7):
        llava.zero_grad()
        with prune(llava, ZooPrune(keep=keep)) as session:
            llava(**session.prepare(inputs | {"labels": labels})).loss.backward()
        for name, parameter in llava.named_parameters():
            if name in plain:
                assert parameter.grad is not None and bool(parameter.grad.any()) == bool(plain[name].any()), name
                if keep == 1.0:
                    torch.testing.assert_close(parameter.grad, plain[name])


def test_generating_takes_no_gradients(llava):
    with prune(llava, ZooPrune(keep=7)):
        out = llava.generate(**make_inputs(Row(1, 6)), **GREEDY, return_dict_in_generate=True, output_logits=True)
    assert not any(logits.requires_grad for logits in out.logits)


def test_the_shadow_is_a_method_of_the_copy(llava):
    with prune(llava, ZooPrune(keep=7)):
        twin = copy.deepcopy(llava)
    assert isinstance(twin.generate, types.MethodType) and twin.generate.__self__ is twin


# What is kept of a model


def test_what_is_worked_out_is_given_back_with_the_last_session(llava):
    inputs = make_inputs(Row(1, 6))

    def kept():
        mine = set(llava.modules())
        return [module for module in weight_cache._kept if not mine.isdisjoint(module.modules())]

    with prune(llava, ZooPrune(keep=7)):
        llava.generate(**inputs, **GREEDY)
        assert kept()
    assert not kept()
    with weight_cache.held(llava):
        for _ in range(2):
            with prune(llava, ZooPrune(keep=7)):
                llava.generate(**inputs, **GREEDY)
            assert kept()
    assert not kept()
