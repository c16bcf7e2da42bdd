"""The methods that prune inside the language model, against vectors from the official code and plain references."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from zooprune.decoder.layer import Heads, Layer
from zooprune.pruners import InsidePruner, get_pruner, list_pruners, pruner_class
from zooprune.pruners.fastv import FastV
from zooprune.pruners.feather import Feather
from zooprune.pruners.inside import layer_number
from zooprune.pruners.pyramiddrop import PyramidDrop

DATA = Path(__file__).parent / "data"
INSIDE = list_pruners("inside the language model")


def cases(name):
    """Return the cases of an archive of golden vectors."""
    archive = np.load(DATA / f"{name}.npz")
    numbers = sorted({int(key.removeprefix("case").split("_")[0]) for key in archive.files})
    return [
        {key.split("_", 1)[1]: archive[key] for key in archive.files if key.startswith(f"case{number}_")}
        for number in numbers
    ]


def named(name):
    return [pytest.param(case, id=str(case["name"])) for case in cases(name)]


def layer_of(heads, visual, *, stage=0, positions=None):
    """Return a layer in which a prompt has these queries and keys."""
    view = SimpleNamespace(heads=heads, unrotated=heads, hidden=torch.zeros(heads.keys.shape[1], 1))
    text = torch.tensor([row for row in range(heads.keys.shape[1]) if row not in set(visual.tolist())])
    return Layer(
        number=2, depth=4, stage=stage, here=view, before=view, visual=visual, text=text, question=text,
        positions=torch.zeros(len(visual), 4, dtype=torch.int64) if positions is None else positions,
        index=torch.arange(len(visual)), images=(visual,), patches=torch.zeros(len(visual), 1),
        words=torch.zeros(len(text), 1), noted=torch.zeros(0, len(visual)),
    )  # fmt: skip


def last_query(query: Tensor, keys: Tensor) -> Heads:
    """Return heads of which only the query of the last token is known."""
    queries = torch.full((len(query), keys.shape[1], query.shape[1]), torch.nan)
    queries[:, -1] = query
    return Heads(queries, keys, query.shape[1] ** -0.5)


def prepared(case):
    query, keys = torch.from_numpy(case["query_last"]).float(), torch.from_numpy(case["keys"]).float()
    start, count = int(case["image_start"]), int(case["num_image"])
    return layer_of(last_query(query, keys), torch.arange(start, start + count))


@pytest.mark.parametrize(("method", "case"), [
    pytest.param(method, case, id=f"{method.name}-{case['name']}")
    for method in (FastV(), PyramidDrop()) for case in cases(method.name)
])  # fmt: skip
def test_rankings_by_the_last_token_are_those_of_the_official_code(method, case):
    layer = prepared(case)
    scores = method.score_at(layer)
    torch.testing.assert_close(scores, torch.from_numpy(case["scores"]), rtol=1e-5, atol=0)
    chosen = method.choose_at(scores, layer, int(case["k"])).sort().values
    assert chosen.tolist() == case["kept_sorted"].tolist()


@pytest.mark.parametrize("case", named("feather"))
def test_feather_is_the_official_code(case):
    total = int(case["num_image"])
    place, side = torch.arange(total), round(total**0.5)
    positions = torch.stack([place * 0, place * 0, place // side, place % side], dim=1)
    method = Feather(ratio=float(case["keep_fraction"]), stride=int(case["stride"]))
    kept = place
    for stage in (0, 1):
        query, keys = (torch.from_numpy(case[f"{what}{stage + 1}"]).float() for what in ("query", "keys"))
        # The prompt is the image and one token behind it, which looks.
        keys = torch.cat([keys[:, kept], torch.zeros(len(keys), 1, keys.shape[2])], dim=1)
        layer = layer_of(last_query(query, keys), torch.arange(len(kept)), stage=stage, positions=positions[kept])
        scores = method.score_at(layer)
        torch.testing.assert_close(scores, torch.from_numpy(case[f"scores{stage + 1}"]), rtol=1e-5, atol=0)
        kept = kept[method.choose_at(scores, layer, None).sort().values]
        assert kept.tolist() == case[f"kept{stage + 1}"].tolist()


def test_the_papers_schedules():
    assert FastV().schedule(576, 576, 32) == ((2, 288),)
    assert PyramidDrop().schedule(576, 576, 32) == ((8, 288), (16, 144), (24, 72))
    assert Feather().schedule(729, 729, 32) == ((8, None), (16, None))
    assert PyramidDrop().schedule(576, 576, 28) == ((7, 288), (14, 144), (21, 72))
    assert PyramidDrop().schedule(576, 576, 2) == ((1, 288),)
    assert FastV().schedule(576, 576, 4) == ((1, 288),)


@pytest.mark.parametrize(("keep", "left"), [(192, 166), (128, 98), (64, 30)])
def test_budgets_of_fastv_are_those_of_the_literature(keep, left):
    """An average of 64 over 32 layers with the first two whole: (32 * 64 - 2 * 576) / 30."""
    assert FastV(keep=keep).schedule(576, 576, 32) == ((2, left),)


def test_shares_of_the_depth_come_earlier_for_a_small_budget_and_numbers_do_not():
    assert [layer for layer, _ in PyramidDrop(keep=192).schedule(576, 576, 32)] == [8, 16, 24]
    assert [layer for layer, _ in PyramidDrop(keep=128).schedule(576, 576, 32)] == [5, 10, 15]
    assert [layer for layer, _ in PyramidDrop(keep=64).schedule(576, 576, 32)] == [2, 4, 6]
    assert [layer for layer, _ in FastV(keep=32).schedule(576, 576, 32)] == [1]
    for method in (PyramidDrop(keep=128, layers=(8, 16, 24)), FastV(keep=32, layer=2), FastV(keep=10)):
        with pytest.raises(ValueError, match="prune at an earlier layer, or before the language model too"):
            method.schedule(576, 576, 32)


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize(("visual", "total"), [(576, 576), (100, 576), (576, 700)])
@pytest.mark.parametrize("depth", [4, 28, 32])
def test_an_average_is_met(name, visual, total, depth):
    # Without stages that leave something, an average is only met to within half a layer.
    near = 0.5 if get_pruner(name).is_exact() else visual / depth / 2
    for target in range(visual // depth + 2, visual - int(near), 97):
        planned = get_pruner(name, keep=target).schedule(visual, total, depth)
        layers, counts = zip(*planned, strict=True)
        read = visual * layers[0] + sum(
            count * (end - start) for (start, count), end in zip(planned, [*layers[1:], depth], strict=True)
        )
        assert abs(read / depth - target) <= near
        assert list(layers) == sorted(set(layers))
        # Tokens come back in one method alone.
        assert name == "lvlm_csp" or list(counts) == sorted(counts, reverse=True)
    assert get_pruner(name, keep=1.0).schedule(visual, visual, depth) == ()


def test_layers_as_numbers_and_shares():
    assert [layer_number(0.25, depth) for depth in (2, 4, 28, 32)] == [1, 1, 7, 8]
    assert layer_number(0.999, 8) == 7 and layer_number(3, 4) == 3
    with pytest.raises(ValueError, match="give 1 to 3"):
        layer_number(4, 4)
    for wrong, error in ((0, ValueError), (1.0, ValueError), (True, TypeError), ("2", TypeError)):
        with pytest.raises(error, match="layer"):
            FastV(layer=wrong)
    for layers in ((), (8, 4), (1, 0.5), (2, 2)):
        with pytest.raises(ValueError, match="ascending"):
            PyramidDrop(layers=layers)


def test_the_grid_counts_inside_a_budget():
    generator = torch.Generator().manual_seed(0)
    heads = Heads(torch.randn(2, 37, 8, generator=generator), torch.randn(2, 37, 8, generator=generator), 8**-0.5)
    place = torch.arange(36)
    layer = layer_of(heads, place, positions=torch.stack([place * 0, place * 0, place // 6, place % 6], dim=1))
    method = Feather(keep=10)
    scores = method.score_at(layer)
    grid = {0, 3, 18, 21}
    chosen = method.choose_at(scores, layer, 10).tolist()
    assert len(chosen) == 10 and grid < set(chosen)
    rest = [token for token in scores.sort(descending=True, stable=True).indices.tolist() if token not in grid]
    assert set(chosen) - grid == set(rest[:6])
    few = method.choose_at(scores, layer, 2).tolist()
    assert set(few) == set(sorted(grid, key=lambda token: -float(scores[token]))[:2])


def test_attention_is_that_of_a_plain_softmax():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(4, 9, 8, generator=generator), torch.randn(2, 9, 8, generator=generator)
    for softcap, window in ((None, None), (1.5, None), (None, 3)):
        found = Heads(queries, keys, 0.3, softcap, window).probabilities(6)
        for head in range(4):
            products = (keys[head // 2].double() @ queries[head, 6].double()) * 0.3
            if softcap is not None:
                products = softcap * (products / softcap).tanh()
            first = 0 if window is None else 7 - window
            expected = torch.zeros(9, dtype=torch.float64)
            expected[first:7] = products[first:7].softmax(0)
            torch.testing.assert_close(found[head].double(), expected, rtol=1e-5, atol=1e-7)
    among = torch.tensor([1, 4, 5])
    whole = Heads(queries, keys, 0.3).probabilities(6)[:, among]
    torch.testing.assert_close(Heads(queries, keys, 0.3).probabilities(6, among), whole / whole.sum(1, keepdim=True))


@pytest.mark.parametrize("name", INSIDE)
def test_they_refuse_to_choose_before_the_language_model(name, tokens):
    assert issubclass(pruner_class(name), InsidePruner)
    with pytest.raises(TypeError, match=f"inside={name!r}"):
        get_pruner(name).select(tokens, 3)


def test_a_published_pair_is_met():
    """DivPrune keeps 284 and chance 38 of them from layer 20 of 32 on: 192 on average."""
    assert get_pruner("horizon").schedule(284, 576, 32) == ((20, 38),)
    assert get_pruner("horizon", keep=192).schedule(284, 576, 32) == ((20, 39),)
    assert get_pruner("adaptinfer").schedule(576, 576, 32) == ((2, 290), (11, 73), (21, 18))
    assert get_pruner("vtw").schedule(576, 576, 32) == ((16, 0),)
    assert get_pruner("vtw", keep=64).schedule(576, 576, 32) == ((4, 0),)


def test_adaptinfer_is_the_formula_in_float64():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(4, 12, 8, generator=generator), torch.randn(2, 12, 8, generator=generator)
    visual, words = torch.arange(2, 7), torch.arange(7, 12)
    view = SimpleNamespace(heads=Heads(queries, keys, 8**-0.5), hidden=torch.zeros(12, 1))
    layer = SimpleNamespace(before=view, visual=visual, question=words)
    products = torch.einsum("hqd,hkd->hqk", queries.double(), keys.double().repeat_interleave(2, 0)) * 8**-0.5
    products = products.masked_fill(~torch.ones(12, 12, dtype=torch.bool).tril(), -torch.inf)
    attention = products.softmax(-1)
    among = attention[:, words][:, :, words]
    both = among + among.transpose(1, 2) - torch.diag_embed(among.diagonal(dim1=1, dim2=2))
    expected = torch.einsum("ht,htn->n", both.sum(1), attention[:, words][:, :, visual])
    found = get_pruner("adaptinfer").score_at(layer)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
