"""The methods that prune inside the language model, against their formulas written out in float64."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from zooprune.decoder.layer import Heads, Passage
from zooprune.pruners import get_pruner
from zooprune.pruners.add_on import AddOn
from zooprune.pruners.debiased import Debiased, fitted_slope
from zooprune.pruners.fastv import FastV
from zooprune.pruners.inside import between
from zooprune.pruners.pyramiddrop import PyramidDrop
from zooprune.pruners.sparsevlm import raters_among
from zooprune.pruners.without_sinks import WithoutSinks
from zooprune.selection.density import density_peaks

#: A prompt: two words, two images, a word between them, and a question.
LENGTH, IMAGES, QUESTION = 24, (range(2, 8), range(9, 19)), range(19, 24)


@dataclass
class Prompt:
    """A prompt in two layers, of which all is random."""

    seed: int = 0
    stage: int = 0
    alone: bool = False

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)
        self.draw = lambda *shape: torch.randn(*shape, generator=generator)
        self.here, self.before = self._view(), self._view()

    def _view(self):
        heads = Heads(2 * self.draw(4, LENGTH, 8), self.draw(2, LENGTH, 8), 8**-0.5)
        nearness = self.draw(LENGTH, LENGTH).abs() + 0.1
        return SimpleNamespace(heads=heads, hidden=self.draw(LENGTH, 12), nearness=lambda rows: nearness[rows])

    def layer(self, image=1):
        images = tuple(torch.tensor(IMAGES[number]) for number in ((1,) if self.alone else (0, 1)))
        visual = torch.tensor(IMAGES[image])
        text = [row for row in range(LENGTH) if not any(row in rows for rows in IMAGES)]
        return SimpleNamespace(
            number=2, stage=self.stage, here=self.here, before=self.before, visual=visual, text=torch.tensor(text),
            question=torch.tensor(QUESTION), images=images, last=LENGTH - 1, index=torch.arange(len(visual)),
            entered=len(visual), patches=self.draw(len(visual), 12), words=self.draw(len(QUESTION), 12),
            noted=self.draw(3, len(visual)).abs(),
        )  # fmt: skip


def attention(view):
    """Return the whole attention, in float64."""
    heads = view.heads
    products = torch.einsum("hqd,hkd->hqk", heads.queries.double(), heads.keys.double().repeat_interleave(2, 0))
    hidden = ~torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    return (products * heads.scaling).masked_fill(hidden, -torch.inf).softmax(-1)


def same(found, expected):
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


def test_attention_of_many_queries_is_the_mean_of_theirs():
    view = Prompt().here
    rows = torch.arange(LENGTH).repeat(6)
    same(view.heads.attention(rows), attention(view).mean((0, 1)))
    same(view.heads.probabilities(rows[:3]), attention(view)[:, :3])


@pytest.mark.parametrize("seed", range(3))
def test_sparsevlm(seed):
    prompt = Prompt(seed)
    layer = prompt.layer()
    likeness = (layer.patches.double() @ layer.words.double().T).softmax(1).mean(0)
    raters = [place for place in range(len(QUESTION)) if likeness[place] > likeness.mean()]
    assert 0 < len(raters) < len(QUESTION) and raters_among(layer.words, layer.patches).tolist() == raters
    rows = torch.tensor(QUESTION)[raters]
    whole = attention(prompt.before)[:, rows][:, :, layer.visual]
    same(get_pruner("sparsevlm").score_at(layer), whole.mean((0, 1)))
    heads = whole.sum((1, 2)).argsort(descending=True)[: round(4 * 14 / 32)]
    near = prompt.before.nearness(rows)[:, layer.visual].double()
    same(get_pruner("sparsevlm", version="2").score_at(layer), (whole[heads] / near).mean((0, 1)))
    # A single word is all there is.
    assert raters_among(layer.words[:1], layer.patches).tolist() == [0]


@pytest.mark.parametrize(("alive", "keep"), [(576, 300), (576, 66), (300, 200), (60, 10), (12, 3), (12, 1)])
def test_sparsevlm_recycles_inside_its_budget(alive, keep):
    method, generator = get_pruner("sparsevlm"), torch.Generator().manual_seed(0)
    recycled = method.recycled(alive, keep)
    clusters = (int(0.3 * (alive - keep + recycled)) + 1) // 10 + 1
    # As many as the official code makes of what is dropped then, or half of the budget.
    assert recycled == clusters or (recycled == keep // 2 and clusters > recycled)
    scores, hidden = torch.rand(alive, generator=generator), torch.randn(alive + 5, 16, generator=generator)
    layer = SimpleNamespace(visual=torch.arange(2, alive + 2), here=SimpleNamespace(hidden=hidden))
    found = method.choose_at(scores, layer, keep)
    order = scores.sort(descending=True, stable=True).indices
    if not recycled:
        assert torch.equal(found, order[:keep])
        return
    assert len(set(found.index.tolist())) == keep and found.index[:-recycled].equal(order[: keep - recycled])
    assert found.index[-recycled:].equal(found.anchors)
    pool = order[keep - recycled :][: int(0.3 * (alive - keep + recycled)) + 1].sort().values
    assert set(found.anchors.tolist()) <= set(pool.tolist())
    rows = hidden[pool + 2].double()
    nearest = torch.cdist(rows, hidden[found.anchors + 2].double()).argmin(1)
    for place in range(recycled):
        torch.testing.assert_close(found.rows[place].double(), rows[nearest == place].mean(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(get_pruner("sparsevlm", version="2").choose_at(scores, layer, keep), order[:keep])


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_density_peaks_are_those_of_loops(count):
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    distance = [[float((a - b).norm()) / 6**0.5 for b in rows] for a in rows]
    density = [2.718281828459045 ** -(sum(d * d for d in sorted(line)[:count]) / count) for line in distance]
    far = max(map(max, distance))
    worth = []
    for own, line in enumerate(distance):
        denser = [d for other, d in enumerate(line) if density[other] > density[own]]
        # With one neighbour, itself, all are equally dense, and those in front count as denser.
        denser = denser if count > 1 else line[:own]
        worth.append(density[own] * min(denser, default=far))
    expected = sorted(sorted(range(20), key=lambda own: -worth[own])[:count])
    centres, into = density_peaks(rows, count)
    assert centres.tolist() == expected
    assert into.tolist() == [min(range(count), key=lambda place: line[expected[place]]) for line in distance]


def test_transprune():
    prompt, method = Prompt(), get_pruner("transprune")
    layer = prompt.layer()
    changed = layer.noted.double().sum(0)
    asked = attention(prompt.here)[:, list(QUESTION)][:, :, layer.visual].mean((0, 1))
    same(method.score_at(layer), changed / changed.sum() + asked / asked.sum())
    passages = [Passage(prompt.draw(LENGTH, 12), prompt.draw(LENGTH, 12)) for _ in range(2)]
    expected = 0
    for passage in passages:
        read, gave = passage.read.double(), passage.gave.double()
        turned = 1 - (read * gave).sum(1) / read.norm(dim=1) / gave.norm(dim=1)
        expected = expected + turned.exp() / turned.exp().sum() * gave.norm(dim=1) / read.norm(dim=1)
    same(method.measure(*passages), expected)
    assert method.watches() and method.schedule(576, 576, 32) == ((7, 504), (9, 360), (12, 72))


def test_visiondrop_inside():
    prompt, method = Prompt(), get_pruner("visiondrop_inside", contextual=0.4)
    layer = prompt.layer()
    scores = method.score_at(layer)
    whole = attention(prompt.here)
    same(scores, whole[:, layer.visual][:, :, layer.visual].mean((0, 1)))
    found = method.choose_at(scores, layer, 5)
    dominant = scores.argsort(descending=True)[:3].tolist()
    rest = [token for token in range(10) if token not in dominant]
    # Seven are left, and every third of them may be contextual.
    targets = [rest[0], rest[3]]
    assert found.index.tolist() == dominant + targets and found.anchors.tolist() == targets
    keys = F.normalize(prompt.here.heads.keys.double().mean(0)[layer.visual], dim=-1)
    hidden, joins = prompt.here.hidden.double()[layer.visual], [[], []]
    for token in rest:
        if token not in targets:
            joins[int(keys[token] @ keys[targets[1]] > keys[token] @ keys[targets[0]])].append(token)
    for place, target in enumerate(targets):
        expected = hidden[target] + (hidden[joins[place]].mean(0) if joins[place] else 0)
        same(found.rows[place], expected)
    assert get_pruner("visiondrop_inside").schedule(48, 576, 32) == ((8, 35), (16, 26), (24, 19))
    assert method.choose_at(scores, layer, 1).tolist() == dominant[:1]


def test_todre_inside_asks_both_ways():
    prompt, method = Prompt(), get_pruner("todre_inside")
    layer = prompt.layer()
    whole = attention(prompt.before).mean(0)
    to_image = float(whole[list(QUESTION)][:, layer.visual].sum(1).mean())
    to_text = float(whole[layer.visual][:, layer.text].sum(1).mean())
    scores = method.score_at(layer)
    assert float(scores.sum()) == pytest.approx(to_image, rel=1e-5)
    high, low = max(to_image, to_text), min(to_image, to_text)
    for threshold, left in ((high * 1.01, 0), (high * 0.99, 10), (low * 1.01, 10), (low * 0.99, 10)):
        found = get_pruner("todre_inside", threshold=threshold).choose_at(scores, layer, None)
        assert found.tolist() == list(range(left))
    assert method.schedule(576, 576, 32) == ((28, None),)


def test_catp_inside_ranks_examples_and_the_image_asked_about_differently():
    prompt, method = Prompt(), get_pruner("catp_inside")
    hidden = prompt.here.hidden.double()
    example, asked = prompt.layer(0), prompt.layer(1)
    gained = (attention(prompt.here) - attention(prompt.before)).mean(0)[-1].clamp_min(0)
    sample = hidden[list(IMAGES[1]) + list(QUESTION)].mean(0)
    expected = gained[example.visual] + 0.6 * F.cosine_similarity(hidden[example.visual], sample, dim=-1)
    same(method.score_at(example), expected)
    context = hidden[: IMAGES[1][0]].mean(0)
    same(method.score_at(asked), F.cosine_similarity(hidden[asked.visual], context, dim=-1))
    alone = Prompt(alone=True)
    only, hidden = alone.layer(1), alone.here.hidden.double()
    gained = (attention(alone.here) - attention(alone.before)).mean(0)[-1].clamp_min(0)
    words = hidden[list(QUESTION)].mean(0)
    expected = gained[only.visual] + 0.6 * F.cosine_similarity(hidden[only.visual], words, dim=-1)
    same(method.score_at(only), expected)


def test_catp_inside_lets_the_last_image_wait_where_the_budget_allows_it():
    method = get_pruner("catp_inside", keep=192)
    assert method.schedule(576, 576, 32, last=False) == ((6, 103),)
    assert method.schedule(576, 576, 32, last=True) == ((7, 84),)
    assert get_pruner("catp_inside", keep=64).schedule(576, 576, 32, last=True) == ((2, 30),)
    assert get_pruner("catp_inside").schedule(576, 576, 32) == ((7, 209),)


def test_attention_is_debiased_by_an_exponential_of_the_place():
    prompt = Prompt()
    layer = prompt.layer()
    plain = FastV().score_at(layer)
    found = Debiased(slope=1.5).score_at(layer)
    same(found, plain.double() / (1.5 * torch.arange(10).double() / 10).exp())
    assert torch.equal(Debiased(slope=0.0).score_at(layer), plain)
    later = Prompt(stage=1).layer()
    assert torch.equal(Debiased().score_at(later), FastV().score_at(later))


def test_a_slope_is_found_again():
    place = torch.arange(50) / 50
    generator = torch.Generator().manual_seed(0)
    rows = [(1.7 * place).exp() * (0.5 + torch.rand(50, generator=generator)) for _ in range(400)]
    assert fitted_slope([(1.7 * place).exp()]) == pytest.approx(1.7, rel=1e-4)
    assert fitted_slope(rows) == pytest.approx(1.7, abs=0.05)
    for wrong in ([], [torch.ones(1)], [torch.ones(3), torch.ones(4)]):
        with pytest.raises(ValueError, match="same number of tokens"):
            fitted_slope(wrong)
    with pytest.raises(ValueError, match="gets no attention"):
        fitted_slope([torch.tensor([0.0, 1.0])])


def test_sinks_rank_last():
    prompt = Prompt()
    hidden = prompt.here.hidden = torch.nn.functional.pad(prompt.here.hidden, (0, 500))
    # The first token and two visual tokens are huge in a channel; another is in one where the first is not.
    for row, channel in ((0, 3), (IMAGES[1][2], 3), (IMAGES[1][7], 3), (IMAGES[1][5], 8)):
        hidden[row, channel] = 1000
    layer = prompt.layer()
    plain, found = FastV().score_at(layer), WithoutSinks().score_at(layer)
    ranks = found.argsort(descending=True).tolist()
    order = plain.argsort(descending=True).tolist()
    assert ranks == [token for token in order if token not in (2, 7)] + [token for token in order if token in (2, 7)]
    given = WithoutSinks(channels=(8,)).sinks(layer)
    assert given.nonzero()[:, 0].tolist() == [5]
    assert not WithoutSinks(threshold=1e6).sinks(layer).any()
    with pytest.raises(ValueError, match="has 512"):
        WithoutSinks(channels=(512,)).sinks(layer)


def test_add_ons_stand_on_any_method_and_on_each_other():
    both = Debiased(keep=64, of=WithoutSinks(of=PyramidDrop(layers=(0.1, 0.5))))
    assert both.schedule(576, 576, 32) == PyramidDrop(keep=64, layers=(0.1, 0.5)).schedule(576, 576, 32)
    assert both.numbers() == "contiguous" and both.below.keep == both.below.below.keep == 64
    assert Debiased(of="horizon").draws("closed form") and not Debiased(of="vtw").is_exact()
    assert Debiased(of="transprune").watches() and not Debiased().watches()
    assert Debiased(of=FastV(keep=7)).below.keep == 7
    with pytest.raises(TypeError, match="sits on a method that prunes inside"):
        Debiased(of="zoo")
    with pytest.raises(ValueError, match="did you mean 'fastv'"):
        Debiased(of="fastw")
    with pytest.raises(NotImplementedError, match="corrected"):
        AddOn.corrected(both, torch.ones(2), None)


def test_lvlm_csp_reads_few_then_all_then_few():
    method = get_pruner("lvlm_csp")
    assert method.schedule(576, 576, 32) == ((0, 144), (8, 576), (16, 72))
    assert get_pruner("lvlm_csp", keep=192).schedule(576, 576, 32) == ((0, 121), (11, 576), (16, 121))
    assert get_pruner("lvlm_csp", keep=192).schedule(576, 576, 4) == ((0, 64), (1, 576), (2, 64))
    layer = Prompt().layer()
    layer.number = 0
    assert method.choose_at(method.score_at(layer), layer, 3).tolist() == [0, 3, 6]
    layer.number = 2
    assert torch.equal(method.score_at(layer), FastV().score_at(layer))
    with pytest.raises(ValueError, match="needs a language model of three layers"):
        method.schedule(16, 16, 2)
    with pytest.raises(ValueError, match="choose another method"):
        get_pruner("lvlm_csp", keep=16).schedule(576, 576, 32)


def test_schedules_between_those_of_a_paper():
    published = [(0.2, 0.1), (0.6, 0.2)]
    for share, expected in ((0, (0, 0)), (1 / 3, published[0]), (0.5, (0.4, 0.15)), (2 / 3, published[1]), (1, (1, 1))):
        assert between(published, share, 2) == pytest.approx(expected)
    assert between(published, 0.5, 1) == pytest.approx((0.4,))


@pytest.mark.parametrize(("name", "options", "error"), [
    ("sparsevlm", {"version": "3"}, ValueError), ("sparsevlm", {"layers": (2, 6)}, ValueError),
    ("transprune", {"layers": (2, 6)}, ValueError), ("visiondrop_inside", {"layers": (2, 6)}, ValueError),
    ("visiondrop_inside", {"contextual": 1.0}, ValueError), ("visiondrop_inside", {"contextual": "1"}, TypeError),
    ("todre_inside", {"threshold": 0}, ValueError), ("catp_inside", {"alignment": -1}, ValueError),
    ("catp_inside", {"alignment": "1"}, TypeError), ("debiased", {"slope": "1"}, TypeError),
    ("debiased", {"slope": float("nan")}, ValueError), ("without_sinks", {"threshold": 0}, ValueError),
    ("without_sinks", {"channels": (-1,)}, ValueError), ("lvlm_csp", {"layers": (2,)}, ValueError),
    ("lvlm_csp", {"representatives": 0}, ValueError),
])  # fmt: skip
def test_wrong_options_are_refused(name, options, error):
    with pytest.raises(error, match=next(iter(options)) if name != "debiased" else "slope"):
        get_pruner(name, **options)
