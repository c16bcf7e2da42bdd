"""Which kept token stands in for which dropped ones, what it becomes, and how often it counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoo_of_models import CASES, IMAGE
from zooprune import ZooPrune, prune
from zooprune.averaging import averages
from zooprune.compaction import compact
from zooprune.families import find_family
from zooprune.policy import Policy
from zooprune.prefill import prefill
from zooprune.pruners import get_pruner
from zooprune.selection.assigning import nearest
from zooprune.standing_in import stand_in
from zooprune.tokens import Selection, VisualTokens
from zooprune.visuals import Visual


def make_tokens(total):
    torch.manual_seed(0)
    projector = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 8)).requires_grad_(False)
    features = torch.randn(total, 6)
    return VisualTokens(features, projector(features), projector, torch.zeros(total, 4, dtype=torch.int64))


@st.composite
def images(draw):
    total = draw(st.integers(2, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    embeddings = torch.randn(total, 5, generator=generator) * torch.rand(total, 1, generator=generator)
    index = torch.randperm(total, generator=generator)[: draw(st.integers(1, total))].sort().values
    groups = torch.randint(0, draw(st.integers(1, 3)), (total,), generator=generator)
    return embeddings, index, groups


@settings(max_examples=80, deadline=None)
@given(images(), st.booleans(), st.booleans())
def test_a_token_goes_to_the_nearest_kept_one_of_its_group(image, grouped, known):
    embeddings, index, groups = image
    wide = embeddings.double()
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    found = nearest(
        embeddings, index, groups=groups if grouped else None, cosines=unit[index] @ unit.T if known else None
    )
    for token in range(len(embeddings)):
        allowed = [place for place, kept in enumerate(index.tolist()) if not grouped or groups[kept] == groups[token]]
        if not allowed:
            assert found[token] == -1
            continue
        distances = [float((wide[token] - wide[index[place]]).norm()) for place in allowed]
        assert int(found[token]) in allowed
        assert distances[allowed.index(int(found[token]))] <= min(distances) + 1e-5
    assert torch.equal(found[index], torch.arange(len(index)))


def test_ties_go_to_the_first_and_copies_of_a_kept_token_keep_their_own_place():
    embeddings = torch.tensor([[1.0, 0], [1, 0], [0, 0], [-1, 0], [1, 0]])
    assert nearest(embeddings, torch.tensor([0, 3, 4])).tolist() == [0, 0, 0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(dtype):
    embeddings = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    index = torch.arange(0, 40, 7)
    assert torch.equal(nearest(embeddings, index), nearest(embeddings.float(), index))


@pytest.mark.parametrize("dropped", ["discard", "mean", "mass", "stand in"])
def test_a_policy_says_what_becomes_of_dropped_tokens(dropped):
    tokens = make_tokens(30)
    plain = ZooPrune(keep=5).select(tokens, 5)
    selection = stand_in(plain, Visual.plain(tokens), Policy(dropped=dropped))
    assert torch.equal(selection.index, plain.index)
    assert (selection.into is None) == (dropped == "discard")
    assert (selection.merged is None) == (dropped in ("discard", "mass"))
    if dropped != "discard":
        assert int(selection.mass.sum()) == 30
        # The choice has worked the cosines out; without them the answer is the same.
        again = stand_in(dataclasses.replace(plain, cosines=None), Visual.plain(tokens), Policy(dropped=dropped))
        assert torch.equal(again.into, selection.into)


def test_nothing_stands_in_where_all_are_kept_or_a_method_has_merged():
    tokens = make_tokens(6)
    policy = Policy(dropped="stand in")
    everything = Selection(torch.arange(6), 6)
    assert stand_in(everything, Visual.plain(tokens), policy) is everything
    merged = Selection(torch.tensor([0, 3]), 6, None, torch.zeros(2, 8), torch.tensor([0, 0, -1, 1, 1, 1]))
    assert stand_in(merged, Visual.plain(tokens), policy) is merged
    assert merged.mass.tolist() == [2, 3]


def test_a_wrong_word_is_refused():
    with pytest.raises(ValueError, match="dropped='forget' is not one of discard, mean, mass, stand in"):
        prune(CASES["llava"].model(), "zoo", keep=3, dropped="forget")


def filled(name, rows, method="random", keep=3, **policies):
    """Return what the language model is to read, and the family's own encoding."""
    case = CASES[name]
    model = case.model()
    family = find_family(model)
    inputs = case.make(model, rows)
    policy = Policy(**{"dropped": "stand in"} | policies)
    with torch.no_grad():
        done = prefill(model, family, get_pruner(method, keep=keep), policy, inputs)
        encoded = family.encode(model, "image", inputs)
    return done, encoded, inputs


@pytest.mark.parametrize("name", [name for name in CASES if name != "video_llava"])
def test_the_model_reads_means(name):
    done, encoded, _ = filled(name, [[0]])
    rows = done.encoder_outputs["image"].pooler_output
    read = torch.cat([part.flatten(0, -2) for part in rows])
    report, tokens = done.report.images[0], encoded.visuals[0].tokens
    expected = averages(tokens.embeddings, report.selection.into, len(report.selection))
    torch.testing.assert_close(read[: len(expected)], expected, rtol=1e-5, atol=1e-5)


def test_rows_of_deeper_layers_become_means_too():
    done, encoded, _ = filled("qwen3_vl", [[0]])
    into = done.report.images[0].selection.into
    for before, after in zip(
        encoded.output.deepstack_features, done.encoder_outputs["image"].deepstack_features, strict=True
    ):
        before, after = (rows if isinstance(rows, torch.Tensor) else torch.cat(list(rows)) for rows in (before, after))
        torch.testing.assert_close(after, averages(before, into, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scope", ["image", "tile", "prompt"])
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
def test_tokens_never_belong_to_a_kept_token_of_another_image(name, scope):
    done, encoded, _ = filled(name, [[0, 0]], scope=scope, keep=4)
    sizes = [len(visual.tokens) for visual in encoded.visuals]
    image = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    first = 0
    for report in done.report.images:
        into, total = report.selection.into, report.selection.total
        held = image[first + report.selection.index]
        owned = into >= 0
        assert torch.equal(held[into[owned]], image[first : first + total][owned])
        # An image of which nothing was kept leaves no trace; all others do.
        assert set(image[first : first + total][~owned].tolist()).isdisjoint(held.tolist())
        first += total
    assert first == sum(sizes)


@pytest.mark.parametrize("newlines", ["drop", "keep", "rows"])
def test_text_padding_and_separators_count_once(newlines):
    done, _, _ = filled("llava_next", [[0], [1, 0]], newlines=newlines, keep=30)
    prompt, visual = done.prompt, (done.prompt.input_ids == IMAGE)
    assert prompt.mass is not None and bool((prompt.mass[~visual] == 1).all())
    kept = sum(int(image.selection.mass.sum()) + image.separators[0] for image in done.report.images)
    assert int(prompt.mass[visual].sum()) == kept
    totals = [image.selection.total for image in done.report.images]
    assert [int(image.selection.mass.sum()) for image in done.report.images] == totals


def test_mass_is_cut_and_repeated_with_the_prompt():
    ids = torch.tensor([[0, 7, IMAGE, IMAGE, 8], [IMAGE, IMAGE, IMAGE, 9, 9]])
    kept, mass = torch.tensor([True, False, False, True, False]), torch.tensor([2.0, 1, 1, 3, 1])
    cut = compact(
        ids, (ids != 0).long(), ids == IMAGE, kept, original=torch.zeros(2, dtype=torch.bool), pad_token_id=0, mass=mass
    )
    assert cut.mass.tolist() == [[1, 2, 1], [3, 1, 1]]
    assert cut.repeated(2).mass.tolist() == [[1, 2, 1], [1, 2, 1], [3, 1, 1], [3, 1, 1]]


def test_methods_that_merge_give_the_mass_themselves():
    done, _, _ = filled("llava", [[0]], method="visionzip", keep=6)
    plain, _, _ = filled("llava", [[0]], method="visionzip", keep=6, dropped="discard")
    rows = [part.encoder_outputs["image"].pooler_output for part in (done, plain)]
    assert torch.equal(torch.cat(list(rows[0])), torch.cat(list(rows[1])))
    selection = done.report.images[0].selection
    assert plain.prompt.mass is None
    assert sorted(done.prompt.mass[done.prompt.mass > 1].tolist()) == sorted(
        selection.mass[selection.mass > 1].tolist()
    )


def test_choosing_once_serves_every_way(monkeypatch):
    from zooprune.encoding import remembering_encodings

    case = CASES["llava"]
    model = case.model()
    inputs = case.make(model, [[0], [0, 0]])
    alone, scored = {}, []
    score = ZooPrune.score
    monkeypatch.setattr(ZooPrune, "score", lambda self, tokens: scored.append(1) or score(self, tokens))
    for dropped in ("discard", "stand in"):
        with prune(model, "zoo", keep=3, dropped=dropped):
            alone[dropped] = model.generate(**inputs, max_new_tokens=3)
    scored.clear()
    with remembering_encodings():
        for dropped in ("discard", "stand in", "discard"):
            with prune(model, "zoo", keep=3, dropped=dropped):
                assert torch.equal(model.generate(**inputs, max_new_tokens=3), alone[dropped])
        assert len(scored) == 3
        with prune(model, "zoo", keep=1.0), prune(case.model(), "zoo", keep=1):
            model.generate(**inputs, max_new_tokens=1)
        assert len(scored) == 6
