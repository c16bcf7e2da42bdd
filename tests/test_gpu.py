"""On a GPU the same tokens are kept and the same is said as on the CPU: every family, every method, every policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import METHODS
from test_decoder_thinning import REFUSED, deep
from test_matrix import configured
from zoo_of_models import CASES, IMAGE, VIDEO
from zooprune import list_pruners, load_bundled, prune
from zooprune.asking import ask
from zooprune.bundled import demo_scene
from zooprune.families import find_family
from zooprune.policy import Policy
from zooprune.pruners import Pruner, get_pruner
from zooprune.reports import Report
from zooprune.signals import find_signal

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:.*linear:UserWarning")]

#: Placeholders among the new tokens would be taken for images when all is read again.
GREEDY = {
    "max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True,
    "suppress_tokens": [IMAGE, VIDEO],
}  # fmt: skip


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions take part of a float32's digits by default, which is too coarse to compare with a CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def moved(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: moved(one) for name, one in value.items()}
    return value.to("cuda") if isinstance(value, Tensor) else value


def answered(model: Any, inputs: dict[str, Any], pruner: Pruner | None, **policy: Any) -> tuple[Report, Any]:
    with prune(model, pruner, **policy) as session:
        said = model.generate(**inputs, **GREEDY)
    return session.reports[-1], said


def check_same(model: Any, inputs: dict[str, Any], pruner: Pruner | None, **policy: Any) -> Report:
    """Answer on the CPU and on the GPU, compare, leave the model on the CPU and return the GPU's report."""
    here, said = answered(model.to("cpu"), inputs, pruner, **policy)
    there, told = answered(model.to("cuda"), moved(inputs), pruner, **policy)
    model.to("cpu")
    for mine, its in zip(here.images, there.images, strict=True):
        assert torch.equal(mine.selection.index, its.selection.index)
        assert mine.read == its.read
    assert torch.equal(told.sequences.cpu(), said.sequences)
    for expected, logits in zip(said.logits, told.logits, strict=True):
        torch.testing.assert_close(logits.cpu(), expected, rtol=1e-3, atol=1e-3)
    return there


@pytest.mark.parametrize("dropped", ["discard", "as it can"])
@pytest.mark.parametrize("family", list(CASES))
def test_every_family(family, dropped):
    if dropped != "discard":
        dropped = "mean" if family in REFUSED else "stand in"
    case = CASES[family]
    model = case.model()
    inputs = case.make(model, [[0, case.kinds - 1], [], [0]])
    report = check_same(model, inputs, configured("zoo", 5), dropped=dropped)
    assert all(value > 0 for value in report.seconds.values())


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    case = CASES["llava_next"]
    model = case.model()
    pruner = configured(name, 7)
    if not all(find_family(model).gives(find_signal(signal)) for signal in pruner.reads()):
        case = CASES["llava"]
        model = case.model()
    check_same(model, case.make(model, [[0, case.kinds - 1], [], [0]]), pruner)


@pytest.mark.parametrize("name", list_pruners("inside the language model"))
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_every_method_inside(family, name):
    case, model = CASES[family], deep(family)
    check_same(model, case.make(model, [[0], [], [0, 0]]), None, inside=get_pruner(name, keep=0.5))


@pytest.mark.parametrize("policy", [
    {"positions": "original"}, {"dropped": "mass"}, {"scope": "tile", "newlines": "rows"},
    {"scope": "prompt", "newlines": "keep"}, {"scope": "prompt", "dropped": "stand in"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_policy(policy, attention):
    case = CASES["llava_next"]
    model = case.model()
    model.set_attn_implementation(attention)
    check_same(model, case.make(model, [[0, case.kinds - 1], [], [0]]), configured("zoo", 9), **policy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bundled_model_answers(dtype):
    model, processor = load_bundled()
    image, question, right = demo_scene()
    model.to("cuda", dtype)
    for dropped in ("discard", "stand in"):
        compared = ask(model, processor, [image], question, get_pruner("zoo", keep=64), Policy(dropped=dropped))
        assert (compared.full.text, compared.pruned.text) == (right, right)
