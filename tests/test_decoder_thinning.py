"""Fewer visual tokens from layer to layer: what comes out is that of a whole run whose layers do not see them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from test_continuing import longer
from test_decoder_mass import logits_of
from zoo_of_models import CASES, IMAGE, TEXT, VIDEO, make_videos
from zooprune import ZooPrune, prune
from zooprune.pruners import InsidePruner, get_pruner
from zooprune.pruners.fastv import FastV

#: Families with layers that hold no key for every token.
REFUSED = ("qwen3_5", "mistral_large4", "lfm2_vl", "lfm2_vl_plain", "lfm3_vl", "glm5_next")
THINNED = [name for name in CASES if name not in REFUSED]
#: Placeholders among the new tokens would be taken for images when all is read again.
GREEDY = {
    "max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True,
    "suppress_tokens": [IMAGE, VIDEO],
}  # fmt: skip
DEPTH = 4
HOOKS = ("_forward_pre_hooks", "_forward_hooks")


@dataclass(frozen=True)
class Drawn(InsidePruner):
    """Keep tokens by a fixed draw, and note them."""

    name: ClassVar[str] = "drawn"
    source: ClassVar[str] = "tests"

    layers: tuple[int, ...] = (1, 3)
    left: tuple[float, ...] = (0.5, 0.25)
    seen: list = field(default_factory=list, compare=False)

    def places(self):
        return self.layers

    def shares(self, share, stages):
        return self.left

    def score_at(self, layer):
        return torch.rand(layer.entered, generator=torch.Generator().manual_seed(layer.entered))[layer.index.cpu()]

    def choose_at(self, scores, layer, keep):
        chosen = super().choose_at(scores, layer, keep)
        self.seen.append((layer.number, layer.index[chosen].sort().values))
        return chosen


@pytest.fixture(scope="module", params=THINNED)
def case(request):
    return CASES[request.param]


def deep(name, depth=DEPTH):
    """Return a model with more layers than the zoo gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TEXT, "num_hidden_layers", depth)
        return CASES[name].model()


@pytest.fixture(scope="module")
def model(case):
    return deep(case.name)


def images_of(model, inputs):
    """Return the row and the columns of every image, in the order of the prompts."""
    from zooprune.families import find_family
    from zooprune.policy import Policy
    from zooprune.prefill import prefill

    done = prefill(model, find_family(model), get_pruner("none"), Policy(), inputs)
    return [
        (image.row, (done.owners[image.row] == number).nonzero()[:, 0])
        for number, image in enumerate(done.report.images)
    ]


def dense(model, inputs, method, anew=False, **options):
    """Return the logits of whole runs in which the layers do not see what `method` has noted to be dropped."""
    width = inputs["input_ids"].shape[1]
    images = images_of(model, inputs)
    hidden, noted = {}, list(method.seen)
    gone = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    for layer in method.layers:
        for row, columns in images:
            number, index = noted.pop(0)
            assert number == layer
            left = torch.zeros(len(columns), dtype=torch.bool)
            left[index] = True
            gone[row, columns[~left]] = True
        hidden[layer] = gone.clone()
    handles, tables = [], []
    decoder = model.get_decoder()

    def note(module, args, kwargs, output):
        tables.append((args, kwargs, output))

    def hide(number):
        dropped = next(hidden[layer] for layer in reversed(method.layers) if layer <= number)

        def hook(module, args, kwargs):
            mask, length = kwargs.get("attention_mask"), (args[0] if args else kwargs["hidden_states"]).shape[1]
            if mask is None:
                mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
            seen = torch.ones(len(dropped), length, dtype=torch.bool)
            seen[:, :width] = ~dropped
            changed = {"attention_mask": mask & seen[:, None, None]}
            if anew:
                given, named, _ = next(call for call in tables if call[2][0] is kwargs["position_embeddings"][0])
                there = torch.ones(len(dropped), length, dtype=torch.bool)
                there[:, :width] = inputs["attention_mask"].bool() & ~dropped
                places = (there.long().cumsum(1) - 1).clamp_min(0)
                old = named["position_ids"] if "position_ids" in named else given[1]
                if old.ndim == 3:
                    # Behind the prompt, every axis goes on from its last number.
                    behind = old[..., width:] - old[..., width - 1 : width] + places[:, width - 1 : width]
                    places = torch.cat([places[:, :width].expand(*old.shape[:-2], -1, -1), behind], dim=-1)
                given = (given[0], *([] if "position_ids" in named else [places]), *given[2:])
                named = named | ({"position_ids": places} if "position_ids" in named else {})
                changed["position_embeddings"] = decoder.rotary_emb.forward(*given, **named)
            return args, kwargs | changed

        return hook

    for number, layer in enumerate(decoder.layers):
        if number >= method.layers[0]:
            handles.append(layer.register_forward_pre_hook(hide(number), with_kwargs=True))
    handles.append(decoder.rotary_emb.register_forward_hook(note, with_kwargs=True))
    try:
        return logits_of(model.generate(**inputs, **GREEDY | {"use_cache": False} | options))
    finally:
        for handle in handles:
            handle.remove()


def inputs_for(case, model):
    return case.make(model, [[0], [case.kinds - 1, 0], []])


@pytest.mark.parametrize("positions", ["auto", "contiguous"])
@pytest.mark.parametrize("alone", [False, True])
def test_what_is_dropped_is_as_if_it_were_not_seen(case, model, positions, alone):
    inputs, method = case.make(model, [[0]]) if alone else inputs_for(case, model), Drawn()
    with prune(model, "none", inside=method, positions=positions) as session:
        found = logits_of(model.generate(**inputs, **GREEDY))
    expected = dense(model, inputs, method, anew=positions == "contiguous")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    plain = logits_of(model.generate(**inputs, **GREEDY))
    assert not torch.allclose(found[0, 0], plain[0, 0], atol=1e-3)
    for image in session.reports[-1].images:
        entered = image.entered
        assert image.read == (entered, int(entered * 0.5), int(entered * 0.5), int(entered * 0.25))


def test_keeping_all_gives_what_no_session_gives(case, model):
    inputs = inputs_for(case, model)
    expected = logits_of(model.generate(**inputs, **GREEDY))
    with prune(model, None, inside=Drawn(left=(1.0, 1.0))) as session:
        assert torch.equal(logits_of(model.generate(**inputs, **GREEDY)), expected)
    assert all(image.read == (image.entered,) * DEPTH for image in session.reports[-1].images)


def test_a_batch_gives_what_its_rows_give(case, model):
    inputs = inputs_for(case, model)
    for method in (FastV(layer=2), Drawn()):
        with prune(model, ZooPrune(keep=0.7) if case.name == "llava" else None, inside=method) as session:
            together = logits_of(model.generate(**inputs, **GREEDY))
            alone = [
                case.make(model, [[0]]),
                case.make(model, [[case.kinds - 1, 0]], seed=1),
                case.make(model, [[]], seed=2),
            ]
            for number, row in enumerate(alone):
                expected = logits_of(model.generate(**row, **GREEDY))[:, 0]
                torch.testing.assert_close(together[:, number], expected, rtol=1e-4, atol=1e-4)
        whole, *rows = session.reports
        assert [image.read for image in whole.images] == [image.read for report in rows for image in report.images]
        for one, other in zip(whole.images, (image for report in rows for image in report.images), strict=True):
            for (layer, kept), (again, same) in zip(one.survivors, other.survivors, strict=True):
                assert layer == again and torch.equal(kept, same)


@pytest.mark.parametrize("positions", ["auto", "contiguous"])
def test_cached_equals_uncached(case, model, positions):
    inputs = inputs_for(case, model)
    with prune(model, None, inside=FastV(layer=1), positions=positions):
        cached = logits_of(model.generate(**inputs, **GREEDY))
        uncached = logits_of(model.generate(**inputs, **GREEDY, use_cache=False))
    torch.testing.assert_close(uncached, cached, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["auto", "contiguous"])
def test_copies_of_a_prompt_are_pruned_like_it(case, model, positions):
    inputs = case.make(model, [[0], [case.kinds - 1]] if case.beams else [[0]])
    options = {"max_new_tokens": 4, "suppress_tokens": [IMAGE, VIDEO]}
    with prune(model, None, inside=FastV(layer=2), positions=positions):
        greedy = model.generate(**inputs, **options, do_sample=False)
        torch.manual_seed(0)
        copies = model.generate(**inputs, **options, do_sample=True, top_k=1, num_return_sequences=2)
        beams = model.generate(**inputs, **options, do_sample=False, num_beams=3)
        alone = [
            model.generate(**case.make(model, [[kind]], seed=row), **options, do_sample=False, num_beams=3)
            for row, kind in enumerate([0, case.kinds - 1][: len(greedy)])
        ]
        uncached = model.generate(**inputs, **options, do_sample=False, num_beams=3, use_cache=False)
    assert torch.equal(copies, greedy.repeat_interleave(2, dim=0))
    assert torch.equal(beams, uncached)
    for row, expected in enumerate(alone):
        assert torch.equal(beams[row, -4:], expected[0, -4:])


@pytest.mark.parametrize("positions", ["auto", "contiguous"])
def test_a_conversation_goes_on_with_what_is_left(case, model, positions):
    inputs, method = case.make(model, [[0], [case.kinds - 1, 0]]), Drawn()
    with prune(model, None, inside=method, positions=positions) as session:
        first = model.generate(**inputs, **GREEDY)
        turn = longer(first.sequences, inputs)
        if not session._family.continues:
            return
        third = []
        second = model.generate(**turn, past_key_values=first.past_key_values, **GREEDY)
        third = model.generate(
            **longer(second.sequences, inputs, seed=1), past_key_values=second.past_key_values, **GREEDY
        )
    # The dense run is forced through the same words.
    whole = third.sequences[:, inputs["input_ids"].shape[1] :]
    steps = iter(whole[:, : whole.shape[1] - 5].T)

    def forced(ids, scores):
        word = next(steps, None)
        return scores if word is None else torch.full_like(scores, -1e9).scatter(1, word[:, None], 0.0)

    given = GREEDY | {"max_new_tokens": whole.shape[1], "logits_processor": [forced]}
    expected = dense(model, inputs, method, anew=positions == "contiguous", **given)[-5:]
    torch.testing.assert_close(logits_of(third), expected, rtol=1e-4, atol=1e-4)


def test_the_model_is_left_as_it_was_also_after_an_error(case, model):
    inputs = inputs_for(case, model)
    expected = logits_of(model.generate(**inputs, **GREEDY))
    modules = [module for module in model.modules()]
    before = [
        {name: len(value) if name in HOOKS else None for name, value in vars(module).items()} for module in modules
    ]

    class Broken(Exception):
        pass

    @dataclass(frozen=True)
    class Breaking(Drawn):
        def score_at(self, layer):
            raise Broken

    with prune(model, None, inside=Breaking()):
        with pytest.raises(Broken):
            model.generate(**inputs, **GREEDY)
        assert model.model.training is False
    for module, held in zip(modules, before, strict=True):
        assert held == {name: len(value) if name in HOOKS else None for name, value in vars(module).items()}
    assert torch.equal(logits_of(model.generate(**inputs, **GREEDY)), expected)


@pytest.mark.parametrize("name", REFUSED)
def test_other_layers_are_refused_before_anything_runs(name):
    model = CASES[name].model()
    with pytest.raises(ValueError, match="nothing can be pruned inside it"):
        prune(model, None, inside="fastv")
    assert "generate" not in vars(model)


def test_attention_rows_are_those_of_the_model(case, model):
    """What a method reads is what eager attention would have given."""
    inputs = case.make(model, [[0]])
    rows = {}

    @dataclass(frozen=True)
    class Reading(Drawn):
        def score_at(self, layer):
            for number, view in ((layer.number - 1, layer.before), (layer.number, layer.here)):
                rows[number] = [view.heads.probabilities(query) for query in (layer.last, layer.last - 1)]
            return super().score_at(layer)

    with prune(model, None, inside=Reading(layers=(2,), left=(1.0 - 1e-9,))):
        model.generate(**inputs, max_new_tokens=1)
    implementation = model.get_decoder().config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True, use_cache=False).attentions
    model.set_attn_implementation(implementation)
    for number, found in rows.items():
        if number == 1:
            for back, one in enumerate(found):
                torch.testing.assert_close(one, attentions[number][0, :, -1 - back], rtol=1e-4, atol=1e-5)
