"""The contract of `prune` with transformers' own generate()."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

from conftest import GRID, IMAGE, MODELS, Row, make_inputs, make_processor
from zooprune import ZooPrune, list_pruners, prune
from zooprune.cache_names import CACHE
from zooprune.pruners import Pruner
from zooprune.tokens import Selection

NEW = 5
MIXED = (Row(1, 6), Row(2, 3), Row(0, 9), Row(1, 2))


@dataclass(frozen=True)
class Scattered(Pruner):
    """Keeps another number of tokens of every image, which ones depending on what they show."""

    name: ClassVar[str] = "scattered"
    source: ClassVar[str] = "a test"
    exact: ClassVar[bool] = False

    def select(self, tokens, keep):
        threshold = tokens.features.float().mean(-1)
        return Selection((threshold > threshold.mean()).nonzero()[:, 0], len(tokens))


def dense_logits(model, inputs, dropped=None, steps=NEW):
    """Return greedy logits of the whole prompt, with the `dropped` keys of one row hidden from every query."""
    ids = inputs["input_ids"]
    logits = []
    for _ in range(steps):
        length = ids.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool).tril()
        if dropped is not None:
            visible[:, : len(dropped)] &= ~dropped
            # A row of a mask must see something; what dropped tokens see is of no consequence.
            visible |= torch.eye(length, dtype=torch.bool)
        out = model(input_ids=ids, pixel_values=inputs["pixel_values"], attention_mask=visible[None, None])
        logits.append(out.logits[:, -1])
        ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], dim=1)
    return torch.stack(logits, dim=1), ids


def run(model, inputs, **options):
    return model.generate(
        **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True, **options
    )


@pytest.mark.parametrize("name", list_pruners())
@pytest.mark.parametrize("positions", ["contiguous", "original"])
@pytest.mark.parametrize("rows", [(Row(1, 5),), (Row(1, 6), Row(2, 3))], ids=["one row", "batch"])
def test_keeping_all_is_plain_generation_bit_for_bit(model, name, positions, rows):
    inputs = make_inputs(*rows)
    plain = run(model, inputs)
    with prune(model, name, keep=1.0, positions=positions):
        pruned = run(model, inputs)
    assert torch.equal(plain.sequences, pruned.sequences)
    assert all(torch.equal(one, other) for one, other in zip(plain.logits, pruned.logits, strict=True))


@pytest.mark.parametrize("pruner", [ZooPrune(keep=8), Scattered()], ids=["zoo", "scattered"])
@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_a_batch_equals_its_rows(model, pruner, positions):
    inputs = make_inputs(*MIXED)
    with prune(model, pruner, positions=positions) as session:
        together = run(model, inputs)
        first = 0
        for number, row in enumerate(MIXED):
            real = inputs["attention_mask"][number].bool()
            alone = {"input_ids": inputs["input_ids"][number][real][None]}
            if row.images:
                alone["pixel_values"] = inputs["pixel_values"][first : first + row.images]
                first += row.images
            single = run(model, alone)
            assert torch.equal(single.sequences[0, -NEW:], together.sequences[number, -NEW:])
            for one, other in zip(single.logits, together.logits, strict=True):
                torch.testing.assert_close(one[0], other[number], rtol=1e-4, atol=1e-4)
    kept = [image.selection.index.tolist() for image in session.reports[0].images]
    assert [image.row for image in session.reports[0].images] == [0, 1, 1, 3]
    assert kept == [image.selection.index.tolist() for report in session.reports[1:] for image in report.images]


def test_original_positions_equal_a_dense_run_with_masked_keys(model):
    inputs = make_inputs(Row(1, 6))
    with prune(model, ZooPrune(keep=9), positions="original") as session:
        pruned = run(model, inputs)
    dropped = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
    dropped[inputs["input_ids"][0] == IMAGE] = ~session.reports[-1].images[0].selection.mask
    assert int(dropped.sum()) == GRID * GRID - 9
    logits, ids = dense_logits(model, inputs, dropped)
    scale = float(logits.detach().abs().max())
    torch.testing.assert_close(torch.stack(pruned.logits, 1), logits, rtol=1e-5, atol=1e-5 * scale)
    assert torch.equal(pruned.sequences, ids)


def test_contiguous_positions_equal_the_prompt_cut_by_hand(model):
    inputs = make_inputs(Row(2, 6))
    with prune(model, ZooPrune(keep=9), positions="contiguous") as session:
        pruned = run(model, inputs)
    ids = inputs["input_ids"][0]
    keeps = torch.ones(len(ids), dtype=torch.bool)
    keeps[ids == IMAGE] = torch.cat([image.selection.mask for image in session.reports[-1].images])
    images = model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
    embeddings = model.get_input_embeddings()(ids).masked_scatter((ids == IMAGE)[:, None], torch.cat(list(images)))
    by_hand = model.generate(
        inputs_embeds=embeddings[keeps][None], attention_mask=torch.ones(1, int(keeps.sum()), dtype=torch.int64),
        max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    scale = float(torch.stack(by_hand.logits).abs().max())
    for one, other in zip(pruned.logits, by_hand.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * scale)
    assert torch.equal(pruned.sequences[:, -NEW:], by_hand.sequences)


MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams, several returned": {"num_beams": 4, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 4},
    "no cache": {"use_cache": False},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "dictionary": {"return_dict_in_generate": True},
    "penalties": {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("keep", [1.0, 7])
@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_every_way_of_generating_gives_the_prompt_back(llava, mode, keep, positions):
    inputs = make_inputs(Row(1, 6), Row(2, 3))
    options = {"do_sample": False} | MODES[mode] | {"max_new_tokens": NEW}
    torch.manual_seed(0)
    plain = llava.generate(**inputs, **options)
    torch.manual_seed(0)
    with prune(llava, ZooPrune(keep=keep), positions=positions):
        pruned = llava.generate(**inputs, **options)
    if mode == "dictionary":
        plain, pruned = plain.sequences, pruned.sequences
    width = inputs["input_ids"].shape[1]
    assert pruned.shape == plain.shape
    assert torch.equal(pruned[:, :width], plain[:, :width])
    if keep == 1.0:
        assert torch.equal(pruned, plain)


#: Before transformers 5.23, chunked prefill changes the answers of padded batches without pruning as well.
CHUNKED = pytest.param(
    "chunked prefill",
    marks=pytest.mark.skipif(
        Version(transformers.__version__) < Version("5.23"), reason="chunked prefill needs transformers 5.23"
    ),
)


@pytest.mark.parametrize("mode", ["static cache", CHUNKED, "no cache"])
@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_ways_of_caching_do_not_change_the_answer(llava, mode, positions):
    inputs = make_inputs(Row(1, 6), Row(2, 3))
    with prune(llava, ZooPrune(keep=7), positions=positions):
        greedy = llava.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        other = llava.generate(**inputs, max_new_tokens=NEW, do_sample=False, **MODES[mode])
    assert torch.equal(greedy, other)


def test_a_compiled_model_with_a_static_cache_is_compiled_once_for_a_budget(llava):
    options = {"max_new_tokens": NEW, "do_sample": False, "cache_implementation": "static"}
    prompts = [make_inputs(Row(1, 6)) for _ in range(2)]
    prompts[1]["pixel_values"] = -prompts[1]["pixel_values"]
    graphs = []

    def keep_graph(graph, _examples):
        graphs.append(graph)
        return graph.forward

    with prune(llava, ZooPrune(keep=7)):
        plain = [llava.generate(**inputs, **options) for inputs in prompts]
        llava.forward = torch.compile(llava.forward, backend=keep_graph)
        first = llava.generate(**prompts[0], **options)
        compiled = len(graphs)
        second = llava.generate(**prompts[1], **options)
    assert torch.equal(first, plain[0]) and torch.equal(second, plain[1])
    assert compiled == len(graphs) > 0


@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_looking_tokens_up_in_the_prompt_does_not_change_the_answer(llava, positions):
    inputs = make_inputs(Row(2, 6))
    with prune(llava, ZooPrune(keep=7), positions=positions):
        greedy = llava.generate(**inputs, max_new_tokens=9, do_sample=False)
        assert torch.equal(greedy, llava.generate(**inputs, max_new_tokens=9, prompt_lookup_num_tokens=3))


@pytest.mark.parametrize("where", ["argument", "config", "model", "model and another config"])
@pytest.mark.parametrize("keep", [1.0, 7])
def test_limits_that_count_the_prompt_still_count_all_of_it(llava, where, keep):
    inputs = make_inputs(Row(1, 6))
    limit = inputs["input_ids"].shape[1] + 3
    options = {}
    if where == "argument":
        options = {"max_length": limit}
    elif where == "config":
        options = {"generation_config": GenerationConfig(max_length=limit, pad_token_id=0)}
    else:
        llava.generation_config.max_length = limit
    if where == "model and another config":
        options = {"generation_config": GenerationConfig(do_sample=False)}
    before = [config.to_dict() for config in (llava.generation_config, *options.values()) if config != limit]
    with prune(llava, ZooPrune(keep=keep)):
        assert llava.generate(**inputs, **options).shape[1] == limit
    assert before == [config.to_dict() for config in (llava.generation_config, *options.values()) if config != limit]


def test_without_a_limit_as_many_tokens_come_as_ever(llava):
    inputs = make_inputs(Row(1, 6))
    plain = llava.generate(**inputs)
    with prune(llava, ZooPrune(keep=7)):
        assert llava.generate(**inputs).shape == plain.shape


def test_a_shortest_length_counts_the_whole_prompt(llava):
    inputs = make_inputs(Row(1, 6))
    width = inputs["input_ids"].shape[1]
    with prune(llava, ZooPrune(keep=7)):
        # The first token that would come ends the answer, unless it must be longer.
        first = int(llava.generate(**inputs, max_new_tokens=1)[0, -1])
        short = llava.generate(**inputs, max_new_tokens=9, eos_token_id=first)
        longer = llava.generate(**inputs, max_new_tokens=9, eos_token_id=first, min_length=width + 4)
        by_hand = llava.generate(
            **inputs, max_new_tokens=9, eos_token_id=first,
            logits_processor=LogitsProcessorList([MinLengthLogitsProcessor(width + 4, first)]),
        )  # fmt: skip
    assert short.shape[1] == width + 1
    assert longer.shape[1] >= width + 4 and first not in longer[0, width : width + 4]
    assert torch.equal(longer, by_hand)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 3}])
def test_what_the_caller_passes_in_sees_the_whole_prompt(llava, options):
    inputs = make_inputs(Row(1, 6), Row(2, 3))
    width = inputs["input_ids"].shape[1]
    seen = []

    def look(ids):
        seen.append(ids.shape[1] - width)
        copies = len(ids) // 2
        assert torch.equal(ids[:, :width], inputs["input_ids"].repeat_interleave(copies, dim=0))

    class Processor(LogitsProcessor):
        def __call__(self, input_ids, scores):
            look(input_ids)
            return scores

    class Criterion(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            look(input_ids)
            return torch.full((len(input_ids),), input_ids.shape[1] >= width + 3)

    with prune(llava, ZooPrune(keep=7)):
        output = llava.generate(
            **inputs, max_new_tokens=9, logits_processor=LogitsProcessorList([Processor()]),
            stopping_criteria=StoppingCriteriaList([Criterion()]), **options,
        )  # fmt: skip
        assert output.shape[1] == width + 3
        limited = llava.generate(**inputs, stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(width + 2)]))
    assert seen == [0, 1, 1, 2, 2, 3]
    assert limited.shape[1] == width + 2


@pytest.mark.parametrize("dropped", ["discard", "stand in"])
def test_pipelines_need_no_change(llava, dropped):
    processor = make_processor()
    ask = pipeline("image-text-to-text", model=llava, processor=processor)
    pictures = [Image.new("RGB", (50, 30), colour) for colour in ("red", "navy")]
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "w7 w8"}]}]
        for picture in pictures
    ]
    options = {"return_full_text": False, "generate_kwargs": {"max_new_tokens": NEW, "do_sample": False}}
    plain = ask(text=chats, **options)
    with prune(llava, ZooPrune(keep=1.0), dropped=dropped):
        assert ask(text=chats, **options) == plain
    with prune(llava, ZooPrune(keep=7), dropped=dropped) as session:
        answers = [answer[0]["generated_text"] for answer in ask(text=chats, **options)]
        for answer, picture in zip(answers, pictures, strict=True):
            inputs = processor(text="<image> w7 w8", images=picture, return_tensors="pt")
            ids = llava.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            assert answer.strip() == processor.decode(ids, skip_special_tokens=True)
    assert [report.kept for report in session.reports] == [7, 7, 7, 7]


def test_the_first_positional_argument_is_the_prompt(llava):
    inputs = make_inputs(Row(1, 6))
    with prune(llava, ZooPrune(keep=7)):
        named = llava.generate(**inputs, max_new_tokens=NEW)
        ids = inputs.pop("input_ids")
        assert torch.equal(llava.generate(ids, **inputs, max_new_tokens=NEW), named)


def test_a_streamer_sees_the_whole_prompt(llava):
    class Listener(BaseStreamer):
        def __init__(self):
            self.heard = []

        def put(self, value):
            self.heard.append(value.flatten())

        def end(self):
            self.heard.append("end")

    inputs, listener = make_inputs(Row(1, 6)), Listener()
    with prune(llava, ZooPrune(keep=7)):
        out = llava.generate(**inputs, max_new_tokens=NEW, streamer=listener)
    assert listener.heard.pop() == "end"
    assert torch.equal(torch.cat(listener.heard), out[0])


def test_prompts_without_images_pass_through(llava):
    inputs = make_inputs(Row(0, 6))
    plain = llava.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    with prune(llava, "zoo", keep=3) as session:
        assert torch.equal(llava.generate(**inputs, max_new_tokens=NEW, do_sample=False), plain)
    assert session.reports == []


def test_prepared_inputs_give_what_generate_sees(model):
    inputs = make_inputs(*MIXED)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    with prune(model, ZooPrune(keep=8)) as session:
        generated = run(model, inputs)
        prepared = session.prepare(inputs | {"labels": labels})
        out = model(**prepared)
    torch.testing.assert_close(out.logits[:, -1], generated.logits[0], rtol=1e-4, atol=1e-4)
    shown = prepared["labels"] != -100
    assert torch.equal(prepared["labels"][shown], prepared["input_ids"][shown])
    assert int(shown.sum()) == int((labels != -100).sum()) - int((inputs["attention_mask"] == 0).sum())
    assert "pixel_values" in inputs and inputs["input_ids"].shape == labels.shape


def test_prepared_inputs_that_keep_all_give_the_plain_logits(llava):
    inputs = make_inputs(Row(1, 6))
    with prune(llava, ZooPrune(keep=1.0)) as session:
        assert torch.equal(llava(**session.prepare(inputs)).logits, llava(**inputs).logits)


def test_one_budget_for_all_images_of_a_prompt(llava):
    inputs = make_inputs(Row(2, 6), Row(1, 3))
    with prune(llava, ZooPrune(keep=9), scope="prompt") as session:
        run(llava, inputs)
    report = session.reports[-1]
    assert [(image.row, len(image.selection), image.selection.total) for image in report.images] == [
        (0, 9, 2 * GRID * GRID),
        (1, 9, GRID * GRID),
    ]
    assert report.images[0].positions[:, 0].unique().tolist() == [0, 1]


def test_reports_tell_what_happened(llava):
    inputs = make_inputs(Row(1, 6), Row(2, 3))
    with prune(llava, ZooPrune(keep=9)) as session:
        run(llava, inputs)
        run(llava, inputs)
    assert len(session.reports) == 2
    report = session.reports[-1]
    assert (report.kept, report.total) == (27, 3 * GRID * GRID)
    assert report.prompt_length - report.pruned_length == 2 * (GRID * GRID - 9)
    assert set(report.seconds) == {"encode", "score", "select", "prefill", "decode"}
    assert all(value > 0 for value in report.seconds.values())
    assert report.images[0].positions[:, 2:].tolist() == [[i // GRID, i % GRID] for i in range(GRID * GRID)]


def attributes(model):
    # transformers leaves hooks of its own at the first call.
    model.generate(**make_inputs(Row(1, 6)), max_new_tokens=2)
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    return set(vars(model)), hooks, model.generate.__func__, model.config.to_json_string()


def test_the_model_is_left_as_it_was(llava):
    before = attributes(llava)
    weights = [parameter.clone() for parameter in llava.parameters()]
    with prune(llava, ZooPrune(keep=7)):
        llava.generate(**make_inputs(Row(1, 6)), max_new_tokens=2)
    assert attributes(llava) == before
    handle = prune(llava, "zoo", keep=0.2)
    assert "generate" in vars(llava)
    handle.close()
    handle.close()
    assert attributes(llava) == before
    assert all(torch.equal(old, new) for old, new in zip(weights, llava.parameters(), strict=True))


def test_the_model_is_left_as_it_was_after_an_error(llava):
    before = attributes(llava)
    inputs = make_inputs(Row(1, 6))
    inputs["pixel_values"] = inputs["pixel_values"][:, :, :7, :7]
    with pytest.raises(ValueError), prune(llava, ZooPrune(keep=7)):
        llava.generate(**inputs)
    assert attributes(llava) == before


def test_one_session_at_a_time(llava):
    with prune(llava, "zoo"), pytest.raises(ValueError, match="already"):
        prune(llava, "random")
    with prune(llava, "random"):
        pass


def test_a_closed_session_prepares_nothing(llava):
    session = prune(llava, "zoo")
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.prepare(make_inputs(Row(1, 6)))


def broken(change):
    inputs = make_inputs(Row(1, 6), Row(1, 3))
    change(inputs)
    return inputs


def filled_cache():
    cache = DynamicCache()
    cache.update(torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 3, 8), 0)
    return cache


def poison(inputs):
    inputs["pixel_values"][1, 0, 0, 0] = float("nan")


def pad_right(inputs):
    inputs["input_ids"] = inputs["input_ids"].roll(-3, dims=1)
    inputs["attention_mask"] = inputs["attention_mask"].roll(-3, dims=1)


def one_slot_to_the_other_row(inputs):
    first, second = inputs["input_ids"]
    first[(first == IMAGE).nonzero()[0]] = 7
    second[-1] = IMAGE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pad_right, "padding_side"),
        (poison, "image 1 gives NaN"),
        (lambda inputs: inputs.pop("input_ids"), "no input_ids"),
        (lambda inputs: inputs.pop("attention_mask"), "attention_mask"),
        (lambda inputs: inputs.update(pixel_values=inputs["pixel_values"][:1]), "72 image placeholders"),
        (lambda inputs: inputs.update(pixel_values=inputs["pixel_values"].repeat(2, 1, 1, 1)), "72 image placeholders"),
        (lambda inputs: inputs.update(input_ids=inputs["input_ids"][:, :0]), "empty"),
        (lambda inputs: inputs.update(position_ids=torch.zeros(2, 45)), "position_ids"),
        (lambda inputs: inputs.update(inputs_embeds=torch.zeros(2, 45, 32)), "inputs_embeds"),
        (lambda inputs: inputs.update({CACHE: filled_cache()}), "a filled cache cannot be used"),
        (lambda inputs: inputs.update(assistant_model=object()), "assistant"),
        (lambda inputs: inputs.update(prefix_allowed_tokens_fn=lambda row, ids: [5]), "logits_processor"),
        (one_slot_to_the_other_row, "image 0 fills 36 placeholders but prompt 0 has 35"),
        (lambda inputs: inputs.update(pixel_values=inputs["pixel_values"].to("meta")), "move the inputs"),
    ],
)  # fmt: skip
def test_inputs_that_cannot_be_pruned_are_explained(llava, change, message):
    inputs = broken(change)
    with prune(llava, ZooPrune(keep=7)) as session:
        with pytest.raises(ValueError, match=message):
            llava.generate(**inputs)
        with pytest.raises(ValueError, match=message):
            session.prepare(inputs)
    assert session.reports == []


def test_arguments_are_checked(llava):
    with pytest.raises(ValueError, match="unknown method"):
        prune(llava, "nothing")
    with pytest.raises(ValueError, match="positions="):
        prune(llava, "zoo", positions="random")
    with pytest.raises(ValueError, match="scope="):
        prune(llava, "zoo", scope="video")
    with pytest.raises(TypeError, match="keep"):
        prune(llava, ZooPrune(), keep=3)
    with pytest.raises(TypeError, match="Pruner"):
        prune(llava, 64)
    with pytest.raises(TypeError, match="transformers model"):
        prune(torch.nn.Linear(2, 2), "zoo")
    text = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                        num_attention_heads=1))  # fmt: skip
    with pytest.raises(ValueError, match="no vision tower"):
        prune(text, "zoo")
    assert "generate" not in vars(llava)


@pytest.mark.parametrize("version", ["5.17.0", "5.25.0"])
def test_transformers_that_is_too_old_or_too_new_is_refused(llava, monkeypatch, version):
    monkeypatch.setattr(transformers, "__version__", version)
    with pytest.raises(ImportError, match=rf"not work with transformers {version}; .*'transformers>=5.18.0,<5.25.0'"):
        prune(llava, "zoo")


@pytest.mark.parametrize("name", list(MODELS))
def test_bfloat16_models_work(name):
    model = MODELS[name]().to(torch.bfloat16)
    inputs = make_inputs(Row(1, 6))
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with prune(model, ZooPrune(keep=7)) as session:
        model.generate(**inputs, max_new_tokens=2)
    assert session.reports[-1].kept == 7
