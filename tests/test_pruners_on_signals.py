"""Methods that read more than features and embeddings, against official code and through a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from conftest import Row, make_inputs
from zoo_of_models import CASES, IMAGE
from zooprune import prune
from zooprune.families import find_family
from zooprune.pruners import get_pruner, pruner_class
from zooprune.selection.dpp import greedy_map
from zooprune.signals import find_signal
from zooprune.tokens import VisualTokens

ZIP, CD = (np.load(Path(__file__).parent / "data" / f"{name}.npz") for name in ("visionzip", "cdpruner"))
GREEDY = {"max_new_tokens": 3, "do_sample": False}


def of(golden, case):
    prefix = f"case{case}_"
    return {name.removeprefix(prefix): golden[name] for name in golden.files if name.startswith(prefix)}


def named(golden):
    return pytest.mark.parametrize("case", range(int(golden["num_cases"])), ids=lambda n: str(golden[f"case{n}_name"]))


@named(ZIP)
def test_visionzip_keeps_and_merges_as_the_official_code_does(case):
    data = of(ZIP, case)
    hidden = torch.tensor(data["hidden"][0, 1:])
    attention = torch.tensor(data["cls_attention"][0].mean(0)[1:, None])
    signals = {"tower_attention": attention, "tower_keys": torch.tensor(data["metric"][0, 1:])}
    tokens = VisualTokens(hidden, hidden, nn.Identity(), torch.zeros(len(hidden), 4, dtype=torch.int64), signals)
    # The official code counts its class token, which is no patch here.
    dominant, contextual = int(data["dominant"]) - 1, int(data["contextual"])
    keep = dominant + contextual
    if not dominant:
        pytest.skip("the one dominant token is the class token")
    selection = get_pruner("visionzip", keep=keep, contextual=contextual / keep).select(tokens, keep)
    kept = np.sort(np.concatenate([data["kept_sorted"][0, 1:], data["target_index"][0]])) - 1
    assert selection.index.tolist() == kept.tolist()
    rows = hidden[selection.index] if selection.merged is None else selection.merged
    targets = np.searchsorted(kept, data["target_index"][0] - 1)
    expected = data["tokens"][0, 1 + dominant :]
    tolerance = 2e-6 * float(np.abs(expected).max())
    np.testing.assert_allclose(rows[targets], expected, rtol=0, atol=tolerance)
    owners = selection.into.tolist()
    for token, owner in enumerate(data["owner_index"][0, 1:]):
        place = kept.searchsorted(token if owner < 0 else owner - 1)
        assert owners[token] == place


@named(CD)
def test_cdpruner_picks_what_the_official_code_picks(case):
    data = of(CD, case)
    features, relevance = torch.tensor(data["features"][0]), torch.tensor(data["relevance"][0])
    total, keep = len(features), int(data["k"])
    tokens = VisualTokens(features, features, nn.Identity(), torch.zeros(total, 4, dtype=torch.int64))
    picked = get_pruner("cdpruner").choose(relevance, tokens, keep).numpy()
    classes = data["tie_class"][0] if "tie_class" in data else np.arange(total)
    if keep < total:
        assert classes[picked].tolist() == classes[data["kept_order"][0]].tolist()
    assert sorted(classes[picked]) == sorted(classes[data["kept_sorted"][0]])


def test_cdpruner_rates_as_the_official_code_does():
    data = of(CD, 0)
    embeddings = torch.tensor(data["image_embeds"][0])
    tokens = VisualTokens(
        embeddings, embeddings, nn.Identity(), torch.zeros(len(embeddings), 4, dtype=torch.int64), {},
        {"question": torch.tensor(data["text_embeds"])},
    )  # fmt: skip
    torch.testing.assert_close(
        get_pruner("cdpruner").score(tokens), torch.tensor(data["relevance"][0]), rtol=1e-5, atol=1e-6
    )


def test_the_question_changes_what_is_kept(llava):
    inputs = make_inputs(Row(1, 6))
    other = dict(inputs, input_ids=inputs["input_ids"].clone())
    other["input_ids"][0, -6:] = torch.arange(20, 26)
    with prune(llava, "cdpruner", keep=7) as session:
        llava.generate(**inputs, **GREEDY)
        llava.generate(**other, **GREEDY)
        llava.generate(**inputs, **GREEDY)
    first, second, third = (report.images[0].selection.index.tolist() for report in session.reports)
    assert first == third != second


def test_the_question_is_the_text_of_its_own_prompt(llava):
    """What a method reads of a row are the embeddings of its text: no padding, no placeholder, no other row's."""
    inputs = make_inputs(Row(1, 6), Row(2, 3))
    seen = []

    class Spy(pruner_class("cdpruner")):
        def score(self, tokens):
            seen.append(tokens.context["question"])
            return super().score(tokens)

    table = llava.get_input_embeddings()
    with prune(llava, Spy(keep=7)):
        llava.generate(**inputs, **GREEDY)
    for row, questions in zip(range(2), ([seen[0]], seen[1:]), strict=True):
        ids = inputs["input_ids"][row]
        text = ids[(ids != IMAGE) & inputs["attention_mask"][row].bool()]
        assert all(torch.equal(question, table(text)) for question in questions)


@pytest.mark.parametrize("scope", ["image", "tile", "prompt"])
@pytest.mark.parametrize("name", [name for name in CASES if find_family(CASES[name].model()).gives_tower_signals])
def test_merged_rows_reach_the_language_model(name, scope):
    """What is merged is what the tokens give that went into it, whatever shares the budget."""
    case = CASES[name]
    model = case.model()
    inputs = case.make(model, [[case.kinds - 1, 0], [0]])
    with torch.no_grad(), prune(model, "visionzip", keep=0.6, contextual=0.5, scope=scope) as session:
        out = model.generate(**inputs, **GREEDY)
        prepared = session.prepare(inputs)
        family = find_family(model)
        signals = [find_signal(one) for one in ("tower_attention", "tower_keys")]
        encoded = family.encode(model, "image", inputs, signals)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3
    rows = torch.cat([one.flatten(0, -2) for one in prepared["mm_encoder_outputs"]["image"].pooler_output])
    assert len(rows) == session.reports[-1].kept
    merged = sum(
        int((image.selection.into.bincount(minlength=len(image.selection)) > 1).sum())
        for image in session.reports[-1].images
    )
    plain = torch.cat([one.flatten(0, -2) for one in encoded.output.pooler_output])
    unlike = sum(not bool((row == plain).all(1).any()) for row in rows)
    assert unlike == merged > 0


def test_deeper_rows_are_averaged_alike():
    case = CASES["qwen3_vl"]
    model = case.model()
    inputs = case.make(model, [[0]])
    with torch.no_grad(), prune(model, "visionzip", keep=4, contextual=0.5) as session:
        outputs = session.prepare(inputs)["mm_encoder_outputs"]["image"]
        encoded = find_family(model).encode(model, "image", inputs)
    selection = session.reports[0].images[0].selection
    for before, after in zip(encoded.output.deepstack_features, outputs.deepstack_features, strict=True):
        for place, row in enumerate(torch.cat([*after])):
            torch.testing.assert_close(row, torch.cat([*before])[selection.into == place].mean(0))


def test_merging_keeps_all_bit_for_bit(llava):
    inputs = make_inputs(Row(1, 6), Row(2, 3))
    plain = llava.generate(**inputs, **GREEDY)
    with prune(llava, "visionzip", keep=1.0):
        assert torch.equal(llava.generate(**inputs, **GREEDY), plain)


def test_signals_are_gathered_only_when_asked_for(llava):
    inputs = make_inputs(Row(1, 6))
    calls = []
    attention = find_family(llava).attentions(llava)[find_family(llava).layer(llava, None)]
    with torch.no_grad():
        plain = find_family(llava).encode(llava, "image", inputs)
        config = attention.config
        hook = attention.register_forward_pre_hook(lambda module, args: calls.append(module.config is config))
        find_family(llava).encode(llava, "image", inputs)
        given = find_family(llava).encode(llava, "image", inputs, [find_signal("tower_attention")])
        hook.remove()
    assert calls == [True, False] and attention.config is config
    assert set(plain.visuals[0].tokens.signals) == {"first_layer"}
    assert torch.equal(plain.output.pooler_output[0], given.output.pooler_output[0])


def test_the_attention_is_that_of_the_tower(llava):
    """Against the tower's own attention, computed eagerly."""
    inputs = make_inputs(Row(2, 6))
    with torch.no_grad():
        for name, layer in (("tower_attention", -2), ("tower_attention/0", 0), ("tower_attention/-1", -1)):
            given = find_family(llava).encode(llava, "image", inputs, [find_signal(name)])
            llava.set_attn_implementation({"vision_config": "eager"})
            eager = llava.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions[layer]
            llava.set_attn_implementation({"vision_config": "sdpa"})
            for image, weights in zip(given.visuals, eager, strict=True):
                torch.testing.assert_close(image.tokens.signals[name][:, 0], weights[:, 0, 1:].mean(0))


def test_unknown_signals_and_layers_are_refused(llava):
    for name, message in (
        ("gaze", "no signal 'gaze'"),
        ("tower_attention/9", "no layer 9"),
        ("question/1", "no signal"),
    ):

        class Asking(pruner_class("visionzip")):
            needs = (name,)

        with pytest.raises(ValueError, match=message):
            prune(llava, Asking())


def test_determinants_of_an_image_without_a_question(tokens):
    from dataclasses import replace

    blank = replace(tokens, context={"question": torch.zeros(0, 20)})
    pruner = get_pruner("cdpruner", keep=9)
    unit = nn.functional.normalize(tokens.embeddings, dim=-1)
    assert torch.equal(pruner.select(blank, 9).index, greedy_map(unit @ unit.T, 9).sort().values)
