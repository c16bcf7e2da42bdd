"""What is kept of a projector: built once, noticed to be stale, given back, and safe with threads."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from zooprune import ZooPrune, sensitivity
from zooprune.precision import exact_float32
from zooprune.projectors import GatedMLP, NormedMLP
from zooprune.sensitivity import jacobian, two_layer, weight_cache
from zooprune.tokens import VisualTokens

WIDTH, HIDDEN, OUT = 16, 64, 24


def plain(hidden: int = HIDDEN) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(WIDTH, hidden), nn.GELU(), nn.Linear(hidden, OUT)).requires_grad_(False)


def merger(width: int = WIDTH, hidden: int = HIDDEN) -> NormedMLP:
    torch.manual_seed(1)
    first, second = nn.Linear(width, hidden), nn.Linear(hidden, OUT)
    return NormedMLP(nn.LayerNorm(width // 4), first, nn.GELU(), second, blocks=4).requires_grad_(False)


def gated() -> GatedMLP:
    torch.manual_seed(1)
    return GatedMLP(
        nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.functional.silu, nn.Linear(HIDDEN // 2, OUT)
    ).requires_grad_(False)


def images(count: int = 8, rows: int = 50) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(rows, WIDTH, generator=generator) for _ in range(count)]


def counted(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[int]:
    calls, original = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: calls.append(1) or original(*args))
    return calls


# Built once.


@pytest.mark.parametrize("make", [plain, merger])
def test_nothing_is_built_anew_for_the_next_image(make, monkeypatch):
    projector = make(hidden=1024)
    built = [counted(monkeypatch, jacobian, "_new_grams"), counted(monkeypatch, two_layer, "_read")]
    for x in images(3):
        for rank in (None, "auto"):
            sensitivity.closed_form(projector, x, rank=rank)
        sensitivity.is_linear(projector, x)
        positions = torch.zeros(len(x), 4, dtype=torch.int64)
        ZooPrune(keep=4).score(VisualTokens(x, torch.zeros(len(x), 4), projector, positions))
    # All forms share the matrices.
    assert [len(calls) for calls in built] == [1, 1]
    projector.get_submodule("second" if make is merger else "2").weight.mul_(2)
    sensitivity.closed_form(projector, images(1)[0], rank="auto")
    assert [len(calls) for calls in built] == [2, 2]


def test_threads_that_ask_for_the_same_build_it_once(monkeypatch):
    projector, start = plain(), threading.Barrier(8)
    built = counted(monkeypatch, jacobian, "_new_grams")

    def score(x: torch.Tensor) -> None:
        start.wait()
        sensitivity.closed_form(projector, x)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(score, images()))
    assert len(built) == 1


# Noticed to be stale.


def table(dtype: torch.dtype = torch.float32) -> nn.Module:
    module = nn.Module()
    values = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    module.weight = nn.Parameter(values, requires_grad=False)
    return module


def noticed(module: nn.Module, change: Callable[[torch.Tensor], None]) -> bool:
    before = weight_cache.cached(module, "key", object)
    change(module.weight.data)
    return weight_cache.cached(module, "key", object) is not before


def swap(values: torch.Tensor, one: int, other: int) -> None:
    values[[one, other]] = values[[other, one]].clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_moves_of_weights_behind_autograds_back_are_noticed(dtype):
    """Rows, columns, halves and single values change places through ``.data``; the sum of all stays what it was."""
    moves: dict[str, Callable[[torch.Tensor], None]] = {
        "two rows": lambda w: w.copy_(w[[1, 0, *range(2, 300)]].clone()),
        "far rows": lambda w: w.copy_(w[[299, *range(1, 299), 0]].clone()),
        "rows turned": lambda w: w.copy_(w.flip(0).clone()),
        "columns turned": lambda w: w.copy_(w.flip(1).clone()),
        "rolled": lambda w: w.copy_(w.roll(1, 0).clone()),
        "all turned": lambda w: w.view(-1).copy_(w.view(-1).flip(0).clone()),
        "two values": lambda w: swap(w.view(-1), 5, 9000),
    }
    for name, move in moves.items():
        assert noticed(table(dtype), move), name
    assert not noticed(table(dtype), lambda w: w.copy_(w.clone()))


def test_random_moves_are_noticed():
    module, generator = table(), torch.Generator().manual_seed(3)
    for _ in range(200):
        order = torch.randperm(300, generator=generator)
        assert noticed(module, lambda w, order=order: w.copy_(w[order].clone()))


def test_scores_follow_rows_that_move():
    projector, x = plain(), images(1)[0]
    sensitivity.closed_form(projector, x)
    projector[0].weight.data.copy_(projector[0].weight.data.flip(0))
    fresh = plain()
    fresh.load_state_dict(projector.state_dict())
    assert torch.equal(sensitivity.closed_form(projector, x), sensitivity.closed_form(fresh, x))


def test_training_mode_and_hooks_build_nothing_anew(monkeypatch):
    projector, x = plain(), images(1)[0]
    built = counted(monkeypatch, jacobian, "_new_grams")
    for _ in range(2):
        sensitivity.closed_form(projector, x)
        projector.train(not projector.training)
        projector.register_forward_hook(lambda *args: None)
    assert len(built) == 1


# Given back.


def bytes_kept(projector: nn.Module) -> int:
    """Return the bytes of all tensors reachable from what is kept of a projector, beside its own."""
    own = {value.untyped_storage().data_ptr() for value in projector.parameters()}
    known = weight_cache._kept.get(projector)
    storages, seen, ahead = {}, set(), [] if known is None else [known.values]
    while ahead:
        value = ahead.pop()
        if id(value) in seen or isinstance(value, (type, nn.Module)):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, (dict, list, tuple)) or hasattr(value, "__dataclass_fields__"):
            ahead += gc.get_referents(value)
    return sum(size for place, size in storages.items() if place not in own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_matrices_are_kept_beside_a_projector(dtype):
    """Five matrices of a four-block projector, one of a plain one, whatever forms were asked for, and a few vectors."""
    matrix = 4 * 1024**2
    for projector, matrices in ((merger(hidden=1024).to(dtype), 5), (plain(1024).to(dtype), 1)):
        for rank in (None, "auto"):
            sensitivity.closed_form(projector, images(1)[0].to(dtype), rank=rank)
        assert matrices * matrix <= bytes_kept(projector) <= matrices * matrix + 10 * 4096


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_low_rank_form_keeps_no_matrices(dtype):
    projector = plain(1024).to(dtype)
    sensitivity.closed_form(projector, images(1)[0], rank=8)
    assert bytes_kept(projector) <= 4 * 1024 * (8 + 1) + 10 * 4096


def test_sampling_keeps_nothing():
    projector = gated().bfloat16()
    for estimate in (sensitivity.jvp, sensitivity.finite_difference):
        estimate(projector, images(1)[0])
    assert bytes_kept(projector) == 0


def test_forgetting_gives_all_back_and_changes_nothing():
    projector, other, x = plain(), plain(), images(1)[0]
    scores = sensitivity.closed_form(projector, x)
    sensitivity.closed_form(other, x)
    weight_cache.forget(projector)
    assert bytes_kept(projector) == 0 < bytes_kept(other)
    assert torch.equal(sensitivity.closed_form(projector, x), scores)


def test_a_model_is_forgotten_after_its_last_user():
    """Also what was kept of a projector that is made of the model's layers but is none of its modules."""
    layers = plain()
    model, x = nn.ModuleDict({"first": layers[0], "second": layers[2], "norm": nn.LayerNorm(WIDTH)}), images(1)[0]
    tail = NormedMLP(model["norm"], model["first"], nn.GELU(), model["second"])
    weight_cache.hold(model)
    weight_cache.hold(model)
    sensitivity.closed_form(tail, x)
    weight_cache.release(model)
    assert bytes_kept(tail) > 0
    weight_cache.release(model)
    assert bytes_kept(tail) == 0
    # One more does no harm.
    weight_cache.release(model)
    gone = weakref.ref(model)
    del model, tail, layers
    gc.collect()
    assert gone() is None


# Threads.

ESTIMATES: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "closed form": sensitivity.closed_form,
    "closed form, rank 3": lambda projector, x: sensitivity.closed_form(projector, x, rank=3),
    "closed form, auto": lambda projector, x: sensitivity.closed_form(projector, x, rank="auto"),
    "derivatives": lambda projector, x: sensitivity.jvp(projector, x, directions=8),
    "differences": lambda projector, x: sensitivity.finite_difference(projector, x, directions=8),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [plain, merger, gated])
def test_eight_threads_score_what_one_scores(make, dtype):
    projector = make().to(dtype)
    before = {name: id(value) for name, value in projector.named_parameters()}
    tasks = [
        (estimate, x.to(dtype))
        for name, estimate in ESTIMATES.items()
        for x in images()
        if make is not gated or "closed" not in name
    ]
    alone = [estimate(projector, x) for estimate, x in tasks]
    runs = [projector(x) for _, x in tasks[:8]]
    weight_cache.forget(projector)
    done = threading.Event()

    def run() -> bool:
        same = True
        while not done.is_set():
            same &= all(torch.equal(projector(x), out) for (_, x), out in zip(tasks[:8], runs, strict=True))
        return same

    with ThreadPoolExecutor(9) as pool:
        meanwhile = pool.submit(run)
        try:
            for _ in range(3):
                together = list(pool.map(lambda task: task[0](projector, task[1]), tasks))
                assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
        finally:
            done.set()
        assert meanwhile.result()
    assert {name: id(value) for name, value in projector.named_parameters()} == before
    assert all(value.dtype == dtype for value in projector.parameters())


def test_precision_stays_exact_until_the_last_thread_leaves():
    switch = torch.backends.mkldnn.matmul
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    outside = switch.fp32_precision
    entered, leave = threading.Event(), threading.Event()

    def stay() -> str:
        with exact_float32():
            entered.set()
            leave.wait()
            return str(switch.fp32_precision)

    try:
        with ThreadPoolExecutor(1) as pool:
            with exact_float32():
                staying = pool.submit(stay)
                entered.wait()
            # The first to come has gone.
            leave.set()
            assert staying.result() == "ieee"
        assert switch.fp32_precision == outside == "bf16"
        # Whoever comes next starts from what is set then.
        torch.set_float32_matmul_precision("highest")
        with exact_float32():
            pass
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
