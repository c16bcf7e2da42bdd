"""One model, eight threads: no error, and the same tokens as one by one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from conftest import METHODS, Row, cached, clip_llama, make_inputs
from zoo_of_models import CASES, VIDEO_CASES, make_videos
from zooprune import ZooPrune, get_pruner, prune

THREADS, CALLS = 8, 16
GREEDY = {"max_new_tokens": 3, "do_sample": False}


@pytest.fixture(autouse=True, scope="module")
def few_threads_within():
    """Let the eight threads share the cores, instead of each taking all of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def at_once(call, items):
    """Call with every item, in eight threads that begin together."""
    gate = threading.Barrier(THREADS)

    def work(place):
        gate.wait()
        return [(number, call(items[number])) for number in range(place, len(items), THREADS)]

    with ThreadPoolExecutor(THREADS) as pool:
        found = dict(pair for pairs in pool.map(work, range(THREADS)) for pair in pairs)
    return [found[number] for number in range(len(items))]


def check(model, pruner, requests, **policy):
    """Compare what threads give with what comes one by one, unpruned calls and calls without images between."""
    parameters = list(model.parameters())
    with torch.no_grad(), prune(model, pruner, **policy) as session:
        said = [model.generate(**inputs, **GREEDY) for inputs in requests]
        expected = [report.images[0].selection.index.tolist() for report in session.reports]
        session.reports.clear()
        got = at_once(lambda inputs: model.generate(**inputs, **GREEDY), requests)
        chosen = [report.images[0].selection.index.tolist() for report in session.reports]
    assert all(torch.equal(one, other) for one, other in zip(got, said, strict=True))
    assert sorted(chosen) == sorted(expected)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:.*linear:UserWarning")
@pytest.mark.parametrize("name", list(CASES))
def test_every_family(name):
    case = CASES[name]
    model = case.model()
    requests = [case.make(model, [[number % case.kinds]], seed=number) for number in range(CALLS)]
    check(model, ZooPrune(keep=3), requests)


@pytest.mark.parametrize("name", VIDEO_CASES)
def test_videos(name):
    model = CASES[name].model()
    check(model, ZooPrune(keep=7), [make_videos(name, model, [[4]], seed=number) for number in range(CALLS)])


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    check(clip_llama(), get_pruner(name, keep=7), [make_inputs(Row(1, 6), seed=number) for number in range(CALLS)])


@pytest.mark.parametrize("estimator", ["closed_form", "jvp", "finite_difference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_estimator(estimator, dtype):
    model = clip_llama().to(dtype)
    requests = [make_inputs(Row(1, 6), seed=number) for number in range(CALLS)]
    for inputs in requests:
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    check(model, ZooPrune(keep=7, estimator=estimator, directions=4), requests)


def test_calls_beside_a_session_are_what_they_are_without_it(llava):
    """Other threads use the tower, without knowing that somebody reads it."""
    requests = [make_inputs(Row(1, 6), seed=number) for number in range(CALLS)]
    original = type(llava).generate
    with torch.no_grad():
        plain = [original(llava, **inputs, **GREEDY) for inputs in requests]
        with prune(llava, "visionzip", keep=7) as session:
            pruned = [llava.generate(**inputs, **GREEDY) for inputs in requests]
            session.reports.clear()
            mixed = at_once(
                lambda pair: (llava.generate if pair[1] else lambda **given: original(llava, **given))(
                    **pair[0], **GREEDY
                ),
                [(inputs, number % 2) for number, inputs in enumerate(requests)],
            )
    for number, said in enumerate(mixed):
        assert torch.equal(said, (pruned if number % 2 else plain)[number])
    assert len(session.reports) == CALLS // 2


def test_packing_is_read_by_the_thread_that_asked(llava):
    """LLaVA-NeXT's tiles are packed by a method, which other threads call as well."""
    case = CASES["llava_next"]
    model = case.model()
    requests = [case.make(model, [[number % 5]], seed=number) for number in range(CALLS)]
    original = type(model).generate
    with torch.no_grad():
        plain = [original(model, **inputs, **GREEDY) for inputs in requests]
        with prune(model, "random", keep=7):
            mixed = at_once(
                lambda pair: model.generate(**pair[0], **GREEDY) if pair[1] else original(model, **pair[0], **GREEDY),
                [(inputs, number % 2) for number, inputs in enumerate(requests)],
            )
    assert all(torch.equal(mixed[number], plain[number]) for number in range(0, CALLS, 2))
    assert "pack_image_features" not in vars(model.model)


def test_conversations_go_on_side_by_side(llava):
    options = GREEDY | {"return_dict_in_generate": True}
    requests = [make_inputs(Row(1, 6), seed=number) for number in range(CALLS)]

    def talk(inputs):
        first = llava.generate(**inputs, **options)
        ids = torch.cat([first.sequences, torch.tensor([[17, 18]])], dim=1)
        return llava.generate(ids, **cached(first), **options).sequences

    with prune(llava, ZooPrune(keep=7)):
        expected = [talk(inputs) for inputs in requests]
        assert all(map(torch.equal, at_once(talk, requests), expected))


def test_of_sessions_that_open_at_once_one_wins(llava):
    plain = llava.generate

    def open_one(_):
        try:
            return prune(llava, ZooPrune(keep=7))
        except ValueError as error:
            return str(error)

    for _ in range(20):
        opened = at_once(open_one, list(range(THREADS)))
        sessions = [one for one in opened if not isinstance(one, str)]
        assert len(sessions) == 1 and all("already" in one for one in opened if isinstance(one, str))
        sessions[0].close()
    assert llava.generate == plain
