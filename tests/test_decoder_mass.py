"""Tokens that count several times: equal tokens pruned to one change nothing, however attention is computed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from conftest import cached
from test_continuing import all_again, longer
from test_practice import lora, offloaded
from zoo_of_models import CASES, IMAGE
from zooprune import prune
from zooprune.cache_names import CACHE
from zooprune.decoder.mass import Weighing, counting
from zooprune.pruners import get_pruner

#: Families with layers that have no key that could count twice.
REFUSED = ("qwen3_5", "mistral_large4", "lfm2_vl", "lfm2_vl_plain", "lfm3_vl", "glm5_next")
WEIGHED = [name for name in CASES if name not in REFUSED]
GREEDY = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


@pytest.fixture(params=WEIGHED)
def case(request):
    return CASES[request.param]


@pytest.fixture
def model(case):
    return case.model()


def standing_in(model, keep=3, **policies):
    return prune(model, get_pruner("random", keep=keep), **{"dropped": "stand in"} | policies)


def logits_of(output):
    return torch.stack(output.logits)


def read(model, embeddings, positions, mass=None):
    """Return what the language model says after the last of some embeddings, (B, vocabulary)."""
    decoder = model.get_decoder()
    axes = 1 if model.config.get_text_config().rope_parameters.get("mrope_section") is None else 4
    places = positions[None] if axes == 1 else positions.expand(axes, 1, -1)
    with torch.no_grad(), counting(model, mass):
        # The mask keeps equal positions from passing for the seams of packed prompts.
        hidden = decoder(
            inputs_embeds=embeddings[None], position_ids=places,
            attention_mask=torch.ones(1, len(embeddings), dtype=torch.int64), use_cache=False,
        ).last_hidden_state  # fmt: skip
    return model.get_output_embeddings()(hidden[:, -1])


def drawn(model, count):
    table = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 60, (count,), generator=generator)
    return table(ids).detach()


def test_equal_tokens_pruned_to_one_change_nothing(case, model):
    """At the start of a prompt all of them see nothing but each other, in every layer."""
    image, *text = drawn(model, 5)
    every = torch.stack([image] * 7 + text)
    one = torch.stack([image, *text])
    expected = read(model, every, torch.tensor([0] * 7 + [1, 2, 3, 4]))
    plain = read(model, one, torch.arange(5))
    weighing = Weighing(model)
    found = read(model, one, torch.arange(5), torch.tensor([[7.0, 1, 1, 1, 1]]))
    weighing.remove()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_groups_of_equal_tokens_anywhere_change_nothing_in_one_layer(case, model):
    decoder = model.get_decoder()
    decoder.layers = decoder.layers[:1]
    for config in {id(config): config for config in (decoder.config, model.config.get_text_config())}.values():
        config.num_hidden_layers = 1
    before, first, second, third, *after = drawn(model, 7)
    every = torch.stack([before, first, second, first, third, second, first, *after])
    one = torch.stack([before, first, second, third, *after])
    expected = read(model, every, torch.tensor([0, 1, 2, 1, 3, 2, 1, 4, 5, 6]))
    weighing = Weighing(model)
    found = read(model, one, torch.arange(7), torch.tensor([[1.0, 3, 2, 1, 1, 1, 1]]))
    weighing.remove()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_keeping_all_gives_what_no_session_gives(case, model):
    inputs = case.make(model, [[0], [case.kinds - 1, 0]])
    expected = model.generate(**inputs, **GREEDY)
    with standing_in(model, keep=1.0):
        found = model.generate(**inputs, **GREEDY)
    assert torch.equal(logits_of(found), logits_of(expected))


@pytest.mark.parametrize("dropped", ["mass", "stand in"])
def test_a_batch_gives_what_its_rows_give(case, model, dropped):
    inputs = case.make(model, [[0], [case.kinds - 1, 0], []])
    with standing_in(model, dropped=dropped) as session:
        together = logits_of(model.generate(**inputs, **GREEDY))
        masses = [image.selection.mass for image in session.reports[-1].images]
        alone = [case.make(model, [[0]]), case.make(model, [[case.kinds - 1, 0]], seed=1)]
        rows = [logits_of(model.generate(**row, **GREEDY))[:, 0] for row in alone]
    for number, expected in enumerate(rows):
        torch.testing.assert_close(together[:, number], expected, rtol=1e-4, atol=1e-4)
    for image, mass in zip(session.reports[0].images, masses, strict=True):
        assert int(mass.sum()) == image.selection.total > len(mass)


def test_cached_equals_uncached(case, model):
    inputs = case.make(model, [[0], [case.kinds - 1, 0]])
    with standing_in(model):
        cached = model.generate(**inputs, **GREEDY)
        for options in ({"use_cache": False}, {"prefill_chunk_size": 5}):
            if case.name in ("paligemma", "gemma3") and "prefill_chunk_size" in options:
                # Image tokens see each other in both directions, which chunks cut apart with or without pruning.
                continue
            other = model.generate(**inputs, **GREEDY, **options)
            torch.testing.assert_close(logits_of(other), logits_of(cached), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3", "mistral3"])
def test_a_static_cache_gives_the_same(name):
    model = CASES[name].model()
    inputs = CASES[name].make(model, [[0], [0, 0]])
    with standing_in(model):
        expected = model.generate(**inputs, **GREEDY)
        found = model.generate(**inputs, **GREEDY, cache_implementation="static")
    torch.testing.assert_close(logits_of(found), logits_of(expected), rtol=1e-4, atol=1e-4)


def test_copies_of_a_prompt_are_weighed_like_it(case, model):
    inputs = case.make(model, [[0], [case.kinds - 1]])
    if not case.beams:
        inputs = case.make(model, [[0]])
    with standing_in(model):
        greedy = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        torch.manual_seed(0)
        copies = model.generate(**inputs, max_new_tokens=4, do_sample=True, top_k=1, num_return_sequences=2)
        beams = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, num_beams=3, return_dict_in_generate=True, output_scores=True
        )
        alone = [
            model.generate(**case.make(model, [[kind]], seed=row), max_new_tokens=4, do_sample=False, num_beams=3)
            for row, kind in enumerate([0, case.kinds - 1][: len(greedy)])
        ]
    assert torch.equal(copies, greedy.repeat_interleave(2, dim=0))
    for row, expected in enumerate(alone):
        assert torch.equal(beams.sequences[row, -4:], expected[0, -4:])


def test_by_hand_is_what_generate_does(case, model):
    inputs = case.make(model, [[case.kinds - 1, 0]])
    with torch.no_grad(), standing_in(model) as session:
        expected = model.generate(**inputs, **GREEDY)
        prepared = session.prepare(inputs)
        output = model(**prepared, use_cache=True)
        logits, last = [output.logits[:, -1]], prepared["position_ids"][..., -1:]
        while len(logits) < 5:
            places = {"position_ids": last + len(logits)} if last.ndim == 2 else {}
            output = model(input_ids=logits[-1].argmax(-1, keepdim=True), **cached(output), **places)
            logits.append(output.logits[:, -1])
    torch.testing.assert_close(torch.stack(logits), logits_of(expected), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="an open session only"):
        model(**prepared)
    with pytest.raises(ValueError, match="the cache holds a pruned prompt"):
        model(input_ids=torch.tensor([[11]]), **cached(output))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_conversation_goes_on_with_the_mass_of_its_beginning(name):
    case = CASES[name]
    model = case.model()
    inputs = case.make(model, [[0], [case.kinds - 1, 0]])
    with standing_in(model):
        first = model.generate(**inputs, **GREEDY)
        turn = longer(first.sequences, inputs)
        second = model.generate(**turn, **cached(first), **GREEDY)
        again = model.generate(**all_again(inputs, turn), **GREEDY)
    torch.testing.assert_close(logits_of(second), logits_of(again), rtol=1e-4, atol=1e-4)


def test_a_window_shorter_than_the_prompt_cuts_the_bias():
    case = CASES["gemma3"]
    model = case.model()
    for layer in model.get_decoder().layers:
        if layer.self_attn.is_sliding:
            layer.self_attn.sliding_window = 6
    model.config.get_text_config().sliding_window = 6
    inputs = case.make(model, [[0], [0, 0]])
    options = GREEDY | {"max_new_tokens": 20, "suppress_tokens": [IMAGE]}
    with standing_in(model, keep=4):
        cached = model.generate(**inputs, **options)
        uncached = model.generate(**inputs, **options, use_cache=False)
        static = model.generate(**inputs, **options, cache_implementation="static")
    torch.testing.assert_close(logits_of(cached), logits_of(uncached), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_of(static), logits_of(uncached), rtol=1e-4, atol=1e-4)


def test_eager_gives_what_sdpa_gives(case, model):
    inputs = case.make(model, [[0], [case.kinds - 1, 0]])
    found = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        with standing_in(model):
            found.append(logits_of(model.generate(**inputs, **GREEDY)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def flash_like(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Attend as a flash kernel is called: a mask of keys alone or none, causal, and no bias."""
    groups = query.shape[1] // key.shape[1]
    key, value = (rows.repeat_interleave(groups, dim=1) for rows in (key, value))
    new, length = query.shape[2], key.shape[2]
    allowed = torch.ones(new, length, dtype=torch.bool).tril(length - new)
    if attention_mask is not None:
        allowed = allowed & attention_mask[:, None, None, -length:].bool()
    bias = torch.zeros_like(allowed, dtype=query.dtype).masked_fill(~allowed, torch.finfo(query.dtype).min)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)
    return output.transpose(1, 2), None


AttentionInterface.register("flash_like", flash_like)
AttentionMaskInterface.register("flash_like", ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "mistral3", "deepseek_vl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_column_of_the_keys_does_what_a_bias_does(name, dtype):
    model = CASES[name].model().to(dtype)
    inputs = CASES[name].make(model, [[0], [0, 0]])
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    found = []
    for implementation in ("sdpa", "flash_like"):
        model.get_decoder().config._attn_implementation_internal = implementation
        configs = [layer.self_attn.config for layer in model.get_decoder().layers]
        with standing_in(model) as session, torch.no_grad():
            found.append(model(**session.prepare(inputs)).logits[:, -1].float())
            model.generate(**inputs, max_new_tokens=2)
        assert all(
            layer.self_attn.config is config for layer, config in zip(model.get_decoder().layers, configs, strict=True)
        )
    tolerance = 2e-5 if dtype == torch.float32 else 0.05 * float(found[0].abs().max())
    torch.testing.assert_close(*found, rtol=0, atol=tolerance)


COMPARED = """
import torch
from zoo_of_models import CASES
from zooprune import prune
from zooprune.pruners import get_pruner

model, found = CASES["llava"].model(), []
inputs = CASES["llava"].make(model, [[0], [0, 0]])
for implementation in ("sdpa", "flex_attention"):
    model.get_decoder().set_attn_implementation(implementation)
    with torch.no_grad(), prune(model, get_pruner("random", keep=3), dropped="stand in") as session:
        found.append(model(**session.prepare(inputs)).logits[:, -1])
torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
"""


def test_flex_attention_gives_what_sdpa_gives():
    """Not compiled, which is a switch of the whole process: torch cannot compile it on every CPU, mass or not."""
    here = Path(__file__).parent
    environment = os.environ | {"TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", COMPARED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_attention_that_takes_no_mass_is_refused():
    model = CASES["llava"].model()
    AttentionInterface.register("another", flash_like)
    AttentionMaskInterface.register("another", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.get_decoder().set_attn_implementation("another")
    with pytest.raises(ValueError, match="attn_implementation='another'"):
        standing_in(model)
    with prune(model, "random", keep=3, dropped="mean"):
        pass
    model.get_decoder().set_attn_implementation("sdpa")
    with standing_in(model):
        model.get_decoder().set_attn_implementation("another")
        with pytest.raises(ValueError, match="attn_implementation='another'"):
            model.generate(**CASES["llava"].make(model, [[0]]), max_new_tokens=1)


@pytest.mark.parametrize("name", REFUSED)
def test_layers_without_keys_are_refused_and_take_means(name):
    model = CASES[name].model()
    inputs = CASES[name].make(model, [[0]])
    for dropped in ("mass", "stand in"):
        with pytest.raises(ValueError, match='no token can count several times; use dropped="mean"'):
            standing_in(model, dropped=dropped)
    with prune(model, get_pruner("random", keep=3)):
        plain = model.generate(**inputs, **GREEDY)
    with standing_in(model, dropped="mean"):
        means = model.generate(**inputs, **GREEDY)
    assert not torch.equal(logits_of(plain), logits_of(means))


def test_the_model_is_left_as_it_was(case, model):
    def hooks():
        return [
            len(getattr(module, kind))
            for module in model.modules()
            for kind in ("_forward_pre_hooks", "_forward_hooks")
        ]

    before = hooks()
    with standing_in(model):
        assert sum(hooks()) > sum(before)
    assert hooks() == before


def test_threads_do_not_weigh_each_other():
    case = CASES["llava"]
    model = case.model()
    batches = [case.make(model, [[0]] if seed % 2 else [[0, 0]], seed=seed) for seed in range(6)]
    found = {}
    with standing_in(model):
        expected = [logits_of(model.generate(**inputs, **GREEDY)) for inputs in batches]

        def answer(number):
            found[number] = logits_of(model.generate(**batches[number], **GREEDY))

        threads = [threading.Thread(target=answer, args=(number,)) for number in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, logits in enumerate(expected):
        assert torch.equal(found[number], logits)


def test_gradients_are_the_same_when_layers_run_again():
    case = CASES["llava"]
    model = case.model()
    inputs = case.make(model, [[0], [0]])
    inputs["labels"] = inputs["input_ids"].clone()
    found = []
    for again in (False, True):
        model.train()
        if again:
            model.activation_checkpointing_enable()
        model.zero_grad()
        with standing_in(model) as session:
            model(**session.prepare(inputs)).loss.backward()
        found.append(model.model.multi_modal_projector.linear_1.weight.grad.clone())
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)


def test_half_precision_and_autocast_stay_near():
    case = CASES["llava"]
    model = case.model()
    inputs = case.make(model, [[0], [0, 0]])
    with torch.no_grad(), standing_in(model) as session:
        prepared = session.prepare(inputs)
        full = model(**prepared).logits[:, -1]
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(**prepared).logits[:, -1].float()
    torch.testing.assert_close(cast, full, rtol=0, atol=0.05 * float(full.abs().max()))


def test_an_empty_cache_of_the_caller_is_filled_with_mass():
    case = CASES["llava"]
    model = case.model()
    inputs = case.make(model, [[0]])
    with standing_in(model):
        expected = model.generate(**inputs, **GREEDY)
        found = model.generate(**inputs, **GREEDY, **{CACHE: DynamicCache()})
    assert torch.equal(logits_of(found), logits_of(expected))


def test_another_model_that_is_called_meanwhile_is_not_weighed():
    """As a guide that a logits processor asks would be."""
    case = CASES["llava"]
    model, guide = case.model(), case.model()
    inputs, text = case.make(model, [[0]]), {"input_ids": torch.tensor([[11, 12, 13, 14]])}
    with torch.no_grad():
        expected, heard = guide(**text).logits, []

    def listen(ids, scores):
        heard.append(guide(**text).logits)
        return scores

    with torch.no_grad(), standing_in(model), standing_in(guide):
        model.generate(**inputs, **GREEDY, logits_processor=[listen])
    assert len(heard) == GREEDY["max_new_tokens"]
    assert all(torch.equal(logits, expected) for logits in heard)


@pytest.mark.parametrize("how", ["cpu", "disk", "device map"])
@pytest.mark.parametrize("name", ["llava", "internvl", "gemma3"])
def test_offloaded_models_are_weighed(name, how, tmp_path):
    case = CASES[name]
    plain = case.model()
    inputs = case.make(plain, [[0], [case.kinds - 1, 0]])
    with standing_in(plain):
        expected = plain.generate(**inputs, **GREEDY)
    model = offloaded(case.model(), how, tmp_path)
    with standing_in(model):
        found = model.generate(**inputs, **GREEDY)
    assert torch.equal(logits_of(found), logits_of(expected))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_lora_in_the_attention_is_weighed_as_it_is_merged():
    case = CASES["llava"]
    model = case.model()
    inputs = case.make(model, [[0]])
    wrapped = lora(model, ["q_proj", "k_proj"])
    with standing_in(wrapped.get_base_model()):
        found = wrapped.generate(**inputs, **GREEDY)
        with wrapped.disable_adapter():
            without = wrapped.generate(**inputs, **GREEDY)
    merged = wrapped.merge_and_unload()
    with standing_in(merged):
        expected = merged.generate(**inputs, **GREEDY)
    torch.testing.assert_close(logits_of(found), logits_of(expected), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits_of(found), logits_of(without), atol=1e-3)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_equal_tokens_pruned_to_one_change_nothing_in_eight_bits(name):
    model = CASES[name].model()
    torch.ao.quantization.quantize_dynamic(model.get_decoder(), {nn.Linear}, dtype=torch.qint8, inplace=True)
    image, *text = drawn(model, 5)
    # What is quantised on the way depends on the largest value of all rows, which is the same with and without copies.
    expected = read(model, torch.stack([image] * 7 + text), torch.tensor([0] * 7 + [1, 2, 3, 4]))
    weighing = Weighing(model)
    found = read(model, torch.stack([image, *text]), torch.arange(5), torch.tensor([[7.0, 1, 1, 1, 1]]))
    weighing.remove()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("when", ["before the session", "inside of it"])
def test_layers_that_are_compiled_are_weighed(when):
    """With dynamo's eager backend, which traces everything and needs no compiler."""
    case = CASES["llava"]
    model = case.model()
    inputs = case.make(model, [[0], [0, 0]])
    with standing_in(model):
        expected = model.generate(**inputs, **GREEDY)
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    def compile_all():
        for layer in model.get_decoder().layers:
            layer.compile(backend=backend)

    if when == "before the session":
        compile_all()
    with standing_in(model):
        if when == "inside of it":
            compile_all()
        found = model.generate(**inputs, **GREEDY)
    assert compiled
    torch.testing.assert_close(logits_of(found), logits_of(expected), rtol=1e-5, atol=1e-6)
