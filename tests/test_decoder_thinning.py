"""Fewer visual tokens from layer to layer: what comes out is that of a whole run whose layers do not see them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from transformers import DynamicCache

from conftest import cached
from test_continuing import longer
from test_decoder_mass import logits_of  # it registers flash_like as well
from test_practice import lora, offloaded
from test_profiling import counted
from zoo_of_models import CASES, IMAGE, TEXT, VIDEO, make_videos
from zooprune import ZooPrune, list_pruners, prune
from zooprune.cache_names import CACHE
from zooprune.costs import generation_flops, kv_cache_bytes
from zooprune.families import find_family
from zooprune.policy import Policy
from zooprune.prefill import prefill
from zooprune.pruners import InsidePruner, get_pruner
from zooprune.pruners.fastv import FastV
from zooprune.pruners.inside import Mixed
from zooprune.reports import lengths

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
        self.seen.append((layer.number, layer.index[chosen].sort().values, None))
        return chosen


@dataclass(frozen=True)
class Mixing(Drawn):
    """Let every other token that stays become a mixture with a dropped one."""

    def choose_at(self, scores, layer, keep):
        chosen = super().choose_at(scores, layer, keep)
        dropped = scores.sort().indices[0]
        rows = layer.here.hidden[layer.visual]
        found = Mixed(chosen, chosen[::2], (rows[chosen[::2]] + rows[dropped]) / 2)
        self.seen[-1] = (*self.seen[-1][:2], (layer.index[found.anchors], found.rows))
        return found


@dataclass(frozen=True)
class Returning(Drawn):
    """Let all tokens come back in front of layer 2."""

    layers: tuple[int, ...] = (0, 2, 3)

    def schedule(self, visual, total, depth, *, last=True):
        return (0, visual // 2), (2, visual), (3, visual // 4)


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
    done = prefill(model, find_family(model), get_pruner("none"), Policy(), inputs)
    return [
        (image.row, (done.owners[image.row] == number).nonzero()[:, 0])
        for number, image in enumerate(done.report.images)
    ]


def dense(model, inputs, method, anew=False, **options):
    """Return the logits of whole runs in which the layers do not see what `method` has noted to be dropped."""
    width = inputs["input_ids"].shape[1]
    images = images_of(model, inputs)
    hidden, back, mixed, noted = {}, {}, {}, list(method.seen)
    gone = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    for layer in method.layers:
        before = gone.clone()
        for row, columns in images:
            left = torch.ones(len(columns), dtype=torch.bool)
            # Nobody is asked about tokens that come back.
            if noted and noted[0][0] == layer:
                _, index, mixtures = noted.pop(0)
                left = torch.zeros_like(left).index_fill(0, index, True)
                if mixtures is not None:
                    mixed.setdefault(layer, []).append((row, columns[mixtures[0]], mixtures[1]))
            gone[row, columns] = ~left
        hidden[layer], back[layer] = gone.clone(), before & ~gone
    assert not noted
    handles, tables, entered = [], [], []
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

    def replace(number):
        def hook(module, args, kwargs):
            rows = (args[0] if args else kwargs["hidden_states"]).clone()
            if number == 0:
                entered[:] = [rows]
            if number in back:
                rows[:, :width][back[number]] = entered[0][:, :width][back[number]]
            for row, columns, become in mixed.get(number, ()):
                rows[row, columns] = become
            return ((rows, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": rows})

        return hook

    for number, layer in enumerate(decoder.layers):
        handles.append(layer.register_forward_pre_hook(replace(number), with_kwargs=True))
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
        entered = image.kept
        assert image.read == (entered, int(entered * 0.5), int(entered * 0.5), int(entered * 0.25))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl"])
@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("kind", [Mixing, Returning])
def test_mixtures_and_tokens_that_come_back(name, positions, kind):
    model, method = deep(name), kind()
    inputs = inputs_for(CASES[name], model)
    with prune(model, None, inside=method, positions=positions) as session:
        first = model.generate(**inputs, **GREEDY)
        found = logits_of(first)
        if kind is Returning:
            read = [(n := image.kept, n // 2) for image in session.reports[-1].images]
            assert [image.read for image in session.reports[-1].images] == [(b, b, n, n // 4) for n, b in read]
    expected = dense(model, inputs, method, anew=positions == "contiguous")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    with prune(model, None, inside=kind(), positions=positions):
        uncached = logits_of(model.generate(**inputs, **GREEDY, use_cache=False))
        beams = [
            model.generate(**inputs, **NEW, num_beams=3, suppress_tokens=[IMAGE, VIDEO], use_cache=cached)
            for cached in (True, False)
        ]
    torch.testing.assert_close(uncached, found, rtol=1e-4, atol=1e-4)
    assert torch.equal(*beams)


def test_what_a_layer_says_beside_attention():
    """Of the second image of the second prompt of a padded batch: its rows, what entered, what modules did."""
    model = deep("llava", 6)
    inputs = CASES["llava"].make(model, [[0], [0, 0]])
    seen, steps = [], []

    @dataclass(frozen=True)
    class Watching(Drawn):
        layers: tuple[int, ...] = (2, 4)

        def watches(self):
            return True

        def measure(self, attention, feed_forward):
            return torch.stack([part.norm(dim=-1) for one in (attention, feed_forward)
                                for part in (one.read, one.gave)]).sum(0)  # fmt: skip

        def score_at(self, layer):
            seen.append(layer)
            return super().score_at(layer)

    def note(module, args, kwargs, output):
        gave = output[0] if isinstance(output, tuple) else output
        read = args[0] if args else kwargs["hidden_states"]
        steps.append((read + 0).norm(dim=-1) + gave.norm(dim=-1))

    with prune(model, None, inside=Watching()):
        model.generate(**inputs, max_new_tokens=1)
    handles = [
        module.register_forward_hook(note, with_kwargs=True)
        for layer in model.get_decoder().layers
        for module in (layer.self_attn, layer.mlp)
    ]
    with torch.no_grad():
        entered = model(**inputs, output_hidden_states=True).hidden_states[0]
    for handle in handles:
        handle.remove()
    (_, _), (_, columns), (row, second) = images_of(model, inputs)
    first, later = seen[2], seen[5]
    assert first.number == 2 and later.number == 4 and (first.stage, later.stage) == (0, 1)
    assert [len(rows) for rows in first.images] == [16, 16] and torch.equal(first.images[1], first.visual)
    # No image is in front of the images of a row that are still whole but padding, which no row counts.
    padding = int((inputs["attention_mask"][row] == 0).sum())
    assert torch.equal(first.visual, second - padding) and torch.equal(first.images[0], columns - padding)
    assert first.question[-1] == first.last == inputs["input_ids"].shape[1] - 1 - padding
    torch.testing.assert_close(first.patches, entered[row, second])
    torch.testing.assert_close(first.words, entered[row, first.question + padding])
    # From the layer in front of the first stage on: layer 1; then layers 1 to 3, of what is left.
    passed = [steps[2 * number] + steps[2 * number + 1] for number in range(6)]
    torch.testing.assert_close(first.noted, passed[1][row, second][None])
    assert later.noted.shape == (3, 8)
    torch.testing.assert_close(later.noted[0], passed[1][row, second][later.index])


def test_layers_without_the_usual_modules_cannot_be_measured():
    model = deep("llava")
    modules = model.get_decoder().layers[1]._modules
    modules["feed_forward"] = modules.pop("mlp")
    with pytest.raises(ValueError, match="transprune measures feed-forward modules"):
        prune(model, None, inside="transprune")
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "glm4v"])
def test_nearness_is_what_the_rotation_makes_of_ones(name):
    model, found = deep(name), []

    @dataclass(frozen=True)
    class Reading(Drawn):
        def score_at(self, layer):
            found.append((layer.before.nearness(layer.visual), layer.before))
            return super().score_at(layer)

    class Ones(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.width = width

        def forward(self, rows):
            return rows.new_ones(*rows.shape[:-1], self.width)

    with prune(model, None, inside=Reading(layers=(2,), left=(0.5,))):
        model.generate(**CASES[name].make(model, [[0]]), max_new_tokens=1)
    ((nearness, view),) = found
    attention = view._module.self_attn
    attention.q_proj, attention.k_proj = Ones(attention.q_proj.out_features), Ones(attention.k_proj.out_features)
    heads = view._heads(view._tables)
    rows = view.hidden.shape[0] - len(nearness)
    expected = heads.queries[0] @ heads.keys[0].T / heads.queries.shape[-1]
    assert rows > 0
    places = (expected[:, None] - nearness[0]).abs().flatten(1).sum(1).argmin()
    torch.testing.assert_close(nearness, expected[places : places + len(nearness)], rtol=1e-5, atol=1e-5)


def test_keeping_all_gives_what_no_session_gives(case, model):
    inputs = inputs_for(case, model)
    expected = logits_of(model.generate(**inputs, **GREEDY))
    with prune(model, None, inside=Drawn(left=(1.0, 1.0))) as session:
        assert torch.equal(logits_of(model.generate(**inputs, **GREEDY)), expected)
    assert all(image.read == (image.kept,) * DEPTH for image in session.reports[-1].images)


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
        second = model.generate(**turn, **cached(first), **GREEDY)
        third = model.generate(**longer(second.sequences, inputs, seed=1), **cached(second), **GREEDY)
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

    class BrokenError(Exception):
        pass

    @dataclass(frozen=True)
    class Breaking(Drawn):
        def score_at(self, layer):
            raise BrokenError

    with prune(model, None, inside=Breaking()):
        with pytest.raises(BrokenError):
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


@pytest.mark.parametrize("name", list(CASES))
def test_families_say_which_of_their_models_are_refused(name):
    model = CASES[name].model()
    assert (type(model).__name__ in find_family(model).unthinned) == (name in REFUSED)


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
        for back, one in enumerate(found):
            torch.testing.assert_close(one, attentions[number][0, :, -1 - back], rtol=1e-4, atol=1e-5)


INSIDE = list_pruners("inside the language model")
NEW = {"max_new_tokens": 3, "do_sample": False}


@pytest.fixture(scope="module")
def llava_with_layers():
    return deep("llava", 6)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("keep", [None, 12, 0.5])
@pytest.mark.parametrize("scope", ["image", "prompt"])
def test_every_method_at_every_budget(llava_with_layers, name, keep, scope):
    model, method = llava_with_layers, get_pruner(name, keep=keep)
    inputs = CASES["llava"].make(model, [[0], [0, 0], []])
    with prune(model, None, inside=method, scope=scope) as session:
        together = model.generate(**inputs, **NEW)
        assert torch.equal(together[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
        model.generate(**inputs, **NEW)
        alone = model.generate(**CASES["llava"].make(model, [[0, 0]], seed=1), **NEW)
    assert torch.equal(alone[0, -3:], together[1, -3:])
    first, second, _ = session.reports
    assert [image.read for image in first.images] == [image.read for image in second.images]
    for image in first.images:
        assert len(image.read) == 6 and max(image.read) == image.kept
        assert name == "lvlm_csp" or list(image.read) == sorted(image.read)[::-1]
        if keep is not None:
            target = keep if isinstance(keep, int) else round(keep * image.kept)
            assert abs(image.average - min(target, image.kept)) <= (
                0.5 if method.is_exact() else image.kept / 12 + 1e-6
            )
    assert first.average == sum(image.average for image in first.images)
    # Without a budget, it may find that image and text still attend to each other.
    assert first.average < first.total or (name, keep) == ("todre_inside", None)


@pytest.mark.parametrize("name", INSIDE)
def test_a_method_inside_may_stand_alone(llava_with_layers, name):
    model = llava_with_layers
    inputs = CASES["llava"].make(model, [[0]])
    with prune(model, name, keep=12) as session:
        expected = model.generate(**inputs, **NEW)
    with prune(model, "none", inside=get_pruner(name, keep=12)) as other:
        assert torch.equal(model.generate(**inputs, **NEW), expected)
    assert session.reports[0].images[0].read == other.reports[0].images[0].read


def test_two_stages_have_one_report(llava_with_layers):
    model = llava_with_layers
    inputs = CASES["llava"].make(model, [[0]])
    with prune(model, ZooPrune(keep=12), inside=FastV(keep=6, layer=2)) as session:
        model.generate(**inputs, **NEW)
    (image,) = session.reports[0].images
    # (12 + 12 + 4 * 3) / 6.
    assert image.read == (12, 12, 3, 3, 3, 3) and image.average == session.reports[0].average == 6
    (_, all_of_them), (layer, left) = image.survivors
    assert layer == 2 and torch.isin(left, all_of_them).all() and len(all_of_them) == 12 == len(image.selection)


def test_operations_are_those_of_the_schedule(llava_with_layers):
    model = llava_with_layers
    inputs = CASES["llava"].make(model, [[0]])
    config, length = model.config.get_text_config(), inputs["input_ids"].shape[1]
    with prune(model, None):
        plain = counted(lambda: model.generate(**inputs, **NEW))
    with prune(model, None, inside=get_pruner("vtw", layer=2)) as session:
        thinned = counted(lambda: model.generate(**inputs, **NEW))
    read = lengths(session.reports[0].images, length)
    assert read == (length, length, *[length - 16] * 4)
    assert plain - thinned == generation_flops(config, length, 3) - generation_flops(config, read, 3)
    assert (
        kv_cache_bytes(config, read, torch.float32) * length
        == kv_cache_bytes(config, length, torch.float32) * (sum(read) // 6)
        if sum(read) % 6 == 0
        else True
    )
    assert lengths((), 7) == 7


@pytest.mark.parametrize(("options", "message"), [
    ({"prefill_chunk_size": 4}, "prefill_chunk_size cannot be used"),
    ({"cache_implementation": "static"}, "a cache of fixed size cannot be used"),
])  # fmt: skip
def test_what_cannot_be_had_is_refused_at_entry(llava_with_layers, options, message):
    model = llava_with_layers
    inputs = CASES["llava"].make(model, [[0]])
    with prune(model, None, inside="fastv"):
        with pytest.raises(ValueError, match=message):
            model.generate(**inputs, **NEW, **options)
        model.generate(**inputs, **NEW)


def test_wrong_ways_in_are_explained(llava_with_layers):
    model = llava_with_layers
    for arguments, error, message in (
        ({"pruner": None, "inside": "zoo"}, TypeError, "prunes before the language model"),
        ({"pruner": None, "inside": 3}, TypeError, "inside must be an InsidePruner"),
        ({"pruner": "fastv", "inside": "vtw"}, TypeError, "leave out one"),
        ({"pruner": None, "inside": "fastv", "dropped": "mass"}, ValueError, 'use dropped="mean"'),
        ({"pruner": None, "inside": FastV(layer=6)}, ValueError, "give 1 to 5"),
        ({"pruner": None, "inside": "fastw"}, ValueError, "did you mean 'fastv'"),
    ):
        with pytest.raises(error, match=message):
            prune(model, **arguments)
        assert "generate" not in vars(model) and not model._forward_pre_hooks
    inputs = CASES["llava"].make(model, [[0]])
    with prune(model, None, inside=FastV(keep=1)) as session:
        with pytest.raises(ValueError, match="prune at an earlier layer"):
            model.generate(**inputs, **NEW)
        with pytest.raises(ValueError, match="with generate"):
            session.prepare(inputs)


def test_a_thinned_cache_needs_a_session_that_thins(llava_with_layers):
    model = llava_with_layers
    inputs = CASES["llava"].make(model, [[0]])
    with prune(model, None, inside="fastv"):
        first = model.generate(**inputs, **GREEDY)
    turn = longer(first.sequences, inputs)
    with prune(model, "random", keep=3), pytest.raises(ValueError, match="go on in a session with inside"):
        model.generate(**turn, **cached(first))
    with prune(model, None, inside="pyramiddrop"):
        model.generate(**turn, **cached(first), max_new_tokens=1)


def test_videos_thin_like_images():
    model = deep("qwen2_5_vl")
    inputs = make_videos("qwen2_5_vl", model, [[4]])
    with prune(model, None, inside=FastV(layer=2)) as session:
        model.generate(**inputs, **NEW)
    assert [image.read[2:] for image in session.reports[0].images] == [
        (image.kept // 2,) * 2 for image in session.reports[0].images
    ]


def test_threads_do_not_mix(llava_with_layers):
    model = llava_with_layers
    prompts = [CASES["llava"].make(model, [[0] * (1 + number % 2)], seed=number) for number in range(6)]
    with prune(model, None, inside=FastV(layer=2)):
        expected = [model.generate(**inputs, **NEW) for inputs in prompts]
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda inputs: model.generate(**inputs, **NEW), prompts))
    assert all(map(torch.equal, found, expected))


def test_a_forward_pass_that_is_not_the_sessions_passes_by(llava_with_layers):
    model = llava_with_layers
    inputs = CASES["llava"].make(model, [[0]])
    with torch.no_grad():
        expected = model(**inputs).logits

    def call_the_model(ids, scores):
        with torch.no_grad():
            assert torch.equal(model(**inputs, **{CACHE: DynamicCache()}).logits, expected)
        return scores

    with prune(model, None, inside="fastv"):
        plain = model.generate(**inputs, **NEW)
        assert torch.equal(model.generate(**inputs, **NEW, logits_processor=[call_the_model]), plain)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_is_read_as_if_it_were_merged():
    inputs = CASES["llava"].make(deep("llava"), [[0], [0, 0]])
    wrapped = lora(deep("llava"), ["q_proj", "k_proj", "down_proj"])
    found = []
    for model in (wrapped.get_base_model(), wrapped.merge_and_unload()):
        with prune(model, None, inside=FastV(layer=2)) as session:
            model.generate(**inputs, **NEW)
        found.append(session.reports[0].images)
    for one, merged in zip(*found, strict=True):
        assert torch.equal(one.survivors[-1][1], merged.survivors[-1][1])


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_offloaded_weights_choose_the_same(how, tmp_path):
    inputs = CASES["llava"].make(deep("llava"), [[0], [0, 0]])
    found = []
    for model in (deep("llava"), offloaded(deep("llava"), how, tmp_path)):
        with prune(model, None, inside=FastV(layer=2)) as session:
            output = model.generate(**inputs, **NEW)
        found.append((output, *(image.survivors[-1][1] for image in session.reports[0].images)))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "mistral3"])
@pytest.mark.parametrize("implementation", ["eager", "flash_like"])
def test_other_attention_functions_give_the_same(name, implementation):
    model = deep(name)
    inputs = CASES[name].make(model, [[0], [0, 0]])
    found = []
    for chosen in ("sdpa", implementation):
        model.get_decoder().config._attn_implementation_internal = chosen
        with prune(model, None, inside=FastV(layer=2)):
            found.append(logits_of(model.generate(**inputs, **GREEDY)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
