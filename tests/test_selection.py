from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zooprune.selection import greedy, greedy_diverse, rescale
from zooprune.selection.isolation import most_isolated

GOLDEN = np.load(Path(__file__).parent / "data" / "zoo_sads.npz")


@pytest.mark.parametrize("weights", ["importance", "weights01"])
@pytest.mark.parametrize("case", range(int(GOLDEN["num_cases"])), ids=lambda n: str(GOLDEN[f"case{n}_name"]))
def test_the_official_order(case, weights):
    """Raw and rescaled weights give the same picks, which are the official ones."""
    embeddings, worth = (torch.tensor(GOLDEN[f"case{case}_{name}"]) for name in ("features", weights))
    picked = greedy_diverse(embeddings, worth, int(GOLDEN[f"case{case}_k"]))
    assert picked.tolist() == GOLDEN[f"case{case}_kept_order"].tolist()


def reference(
    embeddings: np.ndarray, weights: np.ndarray, keep: int, fusion: str, first: int | None = None
) -> list[int]:
    """Return the definition, written out: no running maximum, all in float64."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosine = unit @ unit.T
    spread = weights.max() - weights.min()
    worth = (weights - weights.min()) / (spread + 1e-8) if spread else np.ones_like(weights)
    picked = [int(worth.argmax()) if first is None else first]
    while len(picked) < keep:
        distance = 1 - cosine[:, picked].max(1)
        score = worth * distance if fusion == "product" else worth + distance
        score[picked] = -np.inf
        picked.append(int(score.argmax()))
    return picked


@st.composite
def problems(draw):
    total = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.standard_normal((total, 8)), rng.random(total), draw(st.integers(1, total))


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from(["product", "sum"]))
def test_it_is_the_definition(problem, fusion):
    embeddings, weights, keep = problem
    picked = greedy_diverse(torch.tensor(embeddings), torch.tensor(weights), keep, fusion=fusion)
    # The least sensitive token has weight 0 and may tie with others at the very end of a product.
    assert picked.tolist() == reference(embeddings, weights, keep, fusion)


@settings(max_examples=60, deadline=None)
@given(problems(), st.data(), st.sampled_from(["product", "sum"]))
def test_the_first_pick_may_be_given(problem, data, fusion):
    """All forms go on from it as the definition does."""
    embeddings, weights, keep = problem
    first = data.draw(st.integers(0, len(weights) - 1))
    expected = reference(embeddings, weights, keep, fusion, first)
    given_first = {"fusion": fusion, "first": torch.tensor(first)}
    picked, cosines = greedy.picks_and_cosines(torch.tensor(embeddings), torch.tensor(weights), keep, **given_first)
    assert picked.tolist() == expected
    unit = F.normalize(torch.tensor(embeddings).float(), dim=-1)
    torch.testing.assert_close(cosines, unit[picked] @ unit.T, rtol=0, atol=1e-6)
    worth = rescale(torch.tensor(weights))
    opening = worth.index_fill(0, torch.tensor(first), torch.inf)
    steps, _ = greedy._step_by_step(unit[None], worth[None], opening[None], keep, fusion)
    assert steps[0].tolist() == expected


def test_each_image_of_a_batch_has_its_own_first_pick():
    generator = torch.Generator().manual_seed(0)
    embeddings, weights = torch.randn(3, 20, 5, generator=generator), torch.rand(3, 20, generator=generator)
    first = torch.tensor([4, 0, 19])
    together, _ = greedy.picks_and_cosines(embeddings, weights, 9, first=first)
    assert together[:, 0].tolist() == first.tolist()
    for image in range(3):
        alone, _ = greedy.picks_and_cosines(embeddings[image], weights[image], 9, first=first[image])
        assert torch.equal(alone, together[image])


def plain_isolation(embeddings, weights):
    """Return for each token its weight times the distance to the nearest other one, in float64."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosine = unit @ unit.T
    total = len(cosine)
    near = [max((cosine[one, other] for other in range(total) if other != one), default=-1.0) for one in range(total)]
    return weights * (1 - np.array(near))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 3, 40, 255, 256, 257, 600]), st.integers(0, 10**6))
def test_the_most_isolated_token_is_that_of_the_definition(total, seed):
    rng = np.random.default_rng(seed)
    embeddings, weights = rng.standard_normal((total, 6)), rng.random(total)
    for worth in (weights, np.ones(total)):
        isolation = plain_isolation(embeddings, worth)
        found = int(most_isolated(torch.tensor(embeddings), torch.tensor(worth).float()))
        # Two tokens that are nearest to each other are as far from their nearest one, so the first of them is taken.
        assert found == int((isolation >= isolation.max() - 1e-6).argmax())


def test_isolation_leaves_ties_to_the_lowest_index_and_refuses_nan():
    assert int(most_isolated(torch.ones(6, 3), torch.ones(6))) == 0
    assert int(most_isolated(torch.zeros(6, 3), torch.ones(6))) == 0
    assert int(most_isolated(torch.tensor([[1.0, 0], [1, 0], [0, 1], [-1, 1]]), torch.ones(4))) == 2
    with pytest.raises(ValueError, match="NaN"):
        most_isolated(torch.full((2, 2), torch.nan), torch.ones(2))


@settings(max_examples=40, deadline=None)
@given(problems())
def test_fewer_picks_are_the_first_picks(problem):
    embeddings, weights, keep = (torch.tensor(problem[0]), torch.tensor(problem[1]), problem[2])
    everything = greedy_diverse(embeddings, weights, len(weights))
    assert sorted(everything.tolist()) == list(range(len(weights)))
    assert torch.equal(greedy_diverse(embeddings, weights, keep), everything[:keep])


@settings(max_examples=40, deadline=None)
@given(problems(), st.floats(0.1, 10), st.sampled_from([0.5, 2.0, 8.0]))
def test_scales_do_not_matter(problem, weight_scale, embedding_scale):
    embeddings, weights, keep = torch.tensor(problem[0]).float(), torch.tensor(problem[1]), problem[2]
    plain = greedy_diverse(embeddings, weights, keep)
    assert torch.equal(greedy_diverse(embeddings * embedding_scale, weights, keep), plain)
    # The 1e-8 in the rescaling is not quite scale-free, so the order may change where weights are nearly zero.
    assert greedy_diverse(embeddings, weights * weight_scale, 1) == plain[0]


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(0, 10**6), st.sampled_from(["product", "sum"]))
def test_the_order_of_the_tokens_does_not_matter(problem, seed, fusion):
    embeddings, weights, keep = torch.tensor(problem[0]), torch.tensor(problem[1]), problem[2]
    # The token of weight 0 ties with whatever is left, so it is not among those that count here.
    keep = max(1, min(keep, len(weights) - 1))
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(seed))
    shuffled = greedy_diverse(embeddings[order], weights[order], keep, fusion=fusion)
    assert torch.equal(order[shuffled], greedy_diverse(embeddings, weights, keep, fusion=fusion))


@settings(max_examples=40, deadline=None)
@given(problems(), st.data())
def test_an_excluded_token_is_as_good_as_absent(problem, data):
    embeddings, weights, _ = torch.tensor(problem[0]), torch.tensor(problem[1]), problem[2]
    gone = data.draw(st.lists(st.integers(0, len(weights) - 1), max_size=len(weights) - 1, unique=True))
    rest = torch.tensor([token for token in range(len(weights)) if token not in gone])
    excluded = weights.index_fill(0, torch.tensor(gone, dtype=torch.int64), -torch.inf)
    picked = greedy_diverse(embeddings, excluded, len(weights))
    assert torch.equal(picked, rest[greedy_diverse(embeddings[rest], weights[rest], len(rest))])


def test_nothing_larger_than_the_embeddings_is_ever_made():
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            self.size = max([self.size, *sizes])
            return result

    with Largest() as largest:
        greedy_diverse(torch.randn(300, 40), torch.rand(300), 40)
    assert largest.size == 300 * 40


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 80), st.integers(0, 10**6), st.integers(1, 90), st.integers(1, 9),
    st.sampled_from(["product", "sum"]),
)  # fmt: skip
def test_blocks_pick_what_single_steps_pick(total, width, seed, keep, clusters, fusion):
    """In float64, where rounding decides nothing; clusters make most of a block useless once one of them is kept."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, width, generator=generator, dtype=torch.float64)
    rows = centres[torch.randint(clusters, (total,), generator=generator)]
    unit = F.normalize(rows + 0.1 * torch.randn(total, width, generator=generator, dtype=torch.float64), dim=-1)
    worth = torch.rand(total, generator=generator, dtype=torch.float64)
    worth[torch.rand(total, generator=generator) < 0.1] = -torch.inf
    keep = min(keep, int((worth > -torch.inf).sum()))
    if keep:
        expected = greedy._step_by_step(unit[None], worth[None], worth[None], keep, fusion)[0][0]
        assert torch.equal(greedy._by_blocks(unit, worth, worth, keep, fusion)[0], expected)


@pytest.mark.parametrize(("total", "width", "keep"), [(577, 1024, 64), (1000, 96, 333), (2880, 64, 640)])
def test_blocks_pick_what_single_steps_pick_in_float32(total, width, keep):
    generator = torch.Generator().manual_seed(total)
    unit = F.normalize(torch.randn(total, width, generator=generator), dim=-1)
    worth = rescale(torch.rand(total, generator=generator))
    expected = greedy._step_by_step(unit[None], worth[None], worth[None], keep, "product")[0][0]
    assert torch.equal(greedy._by_blocks(unit, worth, worth, keep, "product")[0], expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 10**6), st.integers(1, 30))
def test_a_batch_is_its_rows(images, total, seed, keep):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(images, total, 5, generator=generator)
    weights = torch.rand(images, total, generator=generator)
    expected = [greedy_diverse(*image, keep).tolist() for image in zip(embeddings, weights, strict=True)]
    assert greedy_diverse(embeddings, weights, keep).tolist() == expected


def test_a_batch_with_unequal_exclusions_is_refused():
    weights = torch.tensor([[1.0, 2, 3], [1, 2, -torch.inf]])
    assert greedy_diverse(torch.ones(2, 3, 2), weights, 2).shape == (2, 2)
    with pytest.raises(ValueError, match="leave 2 to 3 tokens for keep=3; select one by one"):
        greedy_diverse(torch.ones(2, 3, 2), weights, 3)


def test_constant_weights_leave_diversity_alone():
    embeddings = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [-1, 0]])
    assert greedy_diverse(embeddings, torch.full((4,), 7.0), 3).tolist() == [0, 3, 2]


def test_ties_go_to_the_lowest_index():
    same = torch.ones(6, 3)
    assert greedy_diverse(same, torch.ones(6), 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert greedy_diverse(torch.eye(4), torch.tensor([0.0, 1, 1, 1]), 3).tolist() == [1, 2, 3]


def test_zero_embeddings_are_like_nothing():
    embeddings = torch.tensor([[1.0, 0], [0, 0], [1, 0]])
    assert greedy_diverse(embeddings, torch.ones(3), 2).tolist() == [0, 1]


def test_excluded_tokens_are_never_picked():
    weights = torch.tensor([3.0, -torch.inf, 1.0, 2.0])
    assert greedy_diverse(torch.eye(4), weights, 4).tolist() == [0, 3, 2]
    with pytest.raises(ValueError, match="excluded"):
        greedy_diverse(torch.eye(2), torch.full((2,), -torch.inf), 1)


def test_rescaling_leaves_the_excluded_out():
    assert rescale(torch.tensor([2.0, -torch.inf, 4.0])).tolist() == pytest.approx([0, -np.inf, 1])
    assert rescale(torch.tensor([5.0, 5.0])).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("embeddings", "weights", "keep"),
    [
        (torch.ones(3, 2), torch.ones(4), 1),
        (torch.ones(3), torch.ones(3), 1),
        (torch.ones(0, 2), torch.ones(0), 1),
        (torch.ones(3, 2), torch.ones(3), 0),
        (torch.ones(3, 2), torch.tensor([1.0, float("nan"), 2]), 1),
        (torch.ones(3, 2), torch.tensor([1.0, float("inf"), 2]), 1),
        (torch.tensor([[1.0], [float("nan")]]), torch.ones(2), 1),
    ],
)
def test_bad_input_is_refused(embeddings, weights, keep):
    with pytest.raises(ValueError, match=r"disagree|keep|NaN"):
        greedy_diverse(embeddings, weights, keep)


def test_bad_options_are_refused():
    with pytest.raises(TypeError):
        greedy_diverse(torch.ones(3, 2), torch.ones(3), 1.5)
    with pytest.raises(ValueError, match="fusion='max' is not one of product, sum"):
        greedy_diverse(torch.ones(3, 2), torch.ones(3), 1, fusion="max")


def test_autocast_does_not_reach_the_decision():
    generator = torch.Generator().manual_seed(0)
    embeddings, weights = torch.randn(300, 64, generator=generator), torch.rand(300, generator=generator)
    plain = greedy_diverse(embeddings, weights, 100)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(greedy_diverse(embeddings, weights, 100), plain)


def test_half_precision_is_decided_in_float32():
    generator = torch.Generator().manual_seed(5)
    embeddings, weights = torch.randn(50, 16, generator=generator).bfloat16(), torch.rand(50, generator=generator)
    assert torch.equal(greedy_diverse(embeddings, weights, 20), greedy_diverse(embeddings.float(), weights, 20))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(2, 5), st.integers(0, 10**6), st.sampled_from(["product", "sum"]))
def test_all_forms_agree_once_copies_must_be_picked(distinct, copies, seed, fusion):
    """Rounding tells copies from each other in one form and not in the other, unless they are taken for the same."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(distinct, 48, generator=generator)
    place = torch.randint(0, distinct, (distinct * copies,), generator=generator)
    embeddings, weights = rows[place], torch.rand(distinct * copies, generator=generator)
    keep = len(place)
    unit, worth = torch.nn.functional.normalize(embeddings, dim=-1), rescale(weights)
    blocks, _ = greedy._by_blocks(unit, worth, worth, keep, fusion)
    steps = greedy._step_by_step(unit[None], worth[None], worth[None], keep, fusion)[0][0]
    assert torch.equal(blocks, steps)
    if fusion == "product":
        # Once every kind has been picked, only copies are left, and they come in their order.
        kinds = len(place.unique())
        assert len(place[blocks[:kinds]].unique()) >= kinds - 1


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(0, 10**6), st.sampled_from(["product", "sum"]))
def test_a_batch_step_by_step_is_each_image_by_blocks(total, seed, fusion):
    """With tokens that are excluded, as many in every image."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.nn.functional.normalize(torch.randn(total, 40, generator=generator), dim=-1)
    # Copies among them, so that some that are excluded are copies of some that are picked.
    unit = drawn[torch.randint(0, total, (3, total), generator=generator)]
    worth = rescale(torch.rand(3, total, generator=generator) * torch.tensor([[1.0], [5.0], [0.1]]))
    out = total // 3
    for image in worth:
        image[torch.randperm(total, generator=generator)[:out]] = -torch.inf
    together, _ = greedy._step_by_step(unit, worth, worth, total - out, fusion)
    for image, picks in enumerate(together):
        assert torch.equal(picks, greedy._by_blocks(unit[image], worth[image], worth[image], total - out, fusion)[0])
        assert bool((worth[image][picks] > -torch.inf).all()) and len(picks.unique()) == total - out


def test_a_batch_is_rescaled_image_by_image():
    weights = torch.tensor([[1.0, 3.0, 2.0, -torch.inf], [10.0, 70.0, 40.0, 10.0], [5.0, 5.0, 5.0, 5.0]])
    expected = torch.tensor([[0.0, 1.0, 0.5, -torch.inf], [0.0, 1.0, 0.5, 0.0], [1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(rescale(weights), expected)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_weights_that_cannot_be_rescaled_are_refused(wrong):
    with pytest.raises(ValueError, match="weights contain NaN"):
        rescale(torch.tensor([1.0, wrong, 2.0]))
