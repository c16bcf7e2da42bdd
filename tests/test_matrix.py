"""Every method on every family: budgets, scopes, batches, threads, and what cannot be hosted.

All comes from the registry and from the tiny models. How a family prunes with one method is tested in
`test_model_families.py`, how a method chooses in its own module, and both on another device in `test_devices.py`: there
every method runs on one family, and every family with a method that reads all that any of them reads.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from test_decoder_thinning import THINNED, deep
from test_threads import at_once
from zoo_of_models import CASES, IMAGE, VIDEO
from zooprune import get_pruner, list_pruners, prune
from zooprune.encoding import remembering_encodings
from zooprune.families import Family, find_family
from zooprune.policy import Policy
from zooprune.prefill import Prefilled, prefill
from zooprune.pruners import UNPRUNED, Pruner, pruner_class
from zooprune.signals import TowerSignal, find_signal
from zooprune.tokens import Budget

pytestmark = pytest.mark.filterwarnings("ignore:.*linear:UserWarning")

#: Budgets and scopes of further calls, and the row that is asked about.
OTHERS = ((0.4, "tile", 0), (1, "prompt", 0), (1.0, "image", 2))


@dataclass(frozen=True)
class Host:
    """A tiny model, a batch of prompts, and those with images one by one, by their number."""

    family: Family
    model: Any
    batch: dict[str, Any]
    rows: dict[int, dict[str, Any]]

    def hosts(self, pruner: Pruner) -> bool:
        return all(self.family.gives(find_signal(name)) for name in pruner.reads())

    def prefill(self, pruner: Pruner, inputs: dict[str, Any], policy: Policy = Policy()) -> Prefilled:  # noqa: B008
        with torch.no_grad():
            return prefill(self.model, self.family, pruner, policy, inputs)


def configured(name: str, keep: int | float) -> Pruner:
    """Return a method; those that sample do so along few directions, which is quick."""
    names = {field.name for field in dataclasses.fields(pruner_class(name))}
    return get_pruner(name, keep=keep, **({"directions": 2} if "directions" in names else {}))


def signals(host: Host) -> list[TowerSignal]:
    """Return what any method reads of the tower, if the family gives it."""
    names = dict.fromkeys(
        signal for name in list_pruners("before the language model") for signal in get_pruner(name).reads()
    )
    found = map(find_signal, names)
    return [signal for signal in found if isinstance(signal, TowerSignal) and host.family.gives(signal)]


@pytest.fixture(scope="module", params=list(CASES))
def host(request):
    case = CASES[request.param]
    model = case.model()
    kinds: list[list[int]] = [[case.kinds - 1, 0], [], [0]]
    rows = {number: case.make(model, [row], seed=number) for number, row in enumerate(kinds) if row}
    return Host(find_family(model), model, case.make(model, kinds), rows)


@pytest.fixture(scope="module")
def remembered(host):
    """Encode once for all methods."""
    with remembering_encodings(signals(host)):
        yield host


@pytest.fixture(scope="module")
def whole(remembered):
    """Return what the language model reads of the image of the last row if nothing is pruned."""
    return embeddings(remembered.prefill(get_pruner(UNPRUNED), remembered.rows[2]))


def embeddings(prefilled: Prefilled) -> Tensor:
    """Return all rows that the language model reads of images."""
    return torch.cat([part.flatten(0, -2) for part in prefilled.encoder_outputs["image"].pooler_output])


def check_counts(prefilled: Prefilled, pruner: Pruner, name: str) -> None:
    """Look at what became of every image: the number of slots, and whether tokens were mixed."""
    assert prefilled.report.kept == len(embeddings(prefilled))
    for image in prefilled.report.images:
        kept, total = len(image.selection) + image.separators[0], image.selection.total + image.separators[1]
        asked = Budget(pruner.keep).count(total)
        assert kept == asked or (not pruner.is_exact() and 1 <= kept <= total)
        assert pruner_class(name).merges or image.selection.into is None


@pytest.mark.parametrize("name", list_pruners("before the language model"))
def test_every_method_on_every_family(remembered, whole, name):
    host, pruner = remembered, configured(name, 3)
    if not host.hosts(pruner):
        with pytest.raises(ValueError, match=rf"^{name} reads \w+.*, which \w+ does not give; choose another method$"):
            prune(host.model, pruner)
        return
    batch = host.prefill(pruner, host.batch)
    check_counts(batch, pruner, name)
    alone = {number: host.prefill(pruner, inputs) for number, inputs in host.rows.items()}
    for number, one in alone.items():
        mine = [image for image in batch.report.images if image.row == number]
        assert len(mine) == len(one.report.images)
        for here, there in zip(one.report.images, mine, strict=True):
            assert torch.equal(here.selection.index, there.selection.index)
    rows = torch.cat(list(map(embeddings, alone.values())))
    torch.testing.assert_close(rows, embeddings(batch), rtol=1e-4, atol=1e-4)
    for keep, scope, row in OTHERS:
        other = configured(name, keep)
        pruned = host.prefill(other, host.rows[row], Policy(scope=scope))
        check_counts(pruned, other, name)
    # The last of them keeps everything, which changes nothing.
    assert torch.equal(embeddings(pruned), whole)
    assert torch.equal(pruned.prompt.input_ids, host.rows[row]["input_ids"])


def test_all_methods_at_once_in_threads(host):
    pruners = [configured(name, 3) for name in list_pruners("before the language model")]
    calls = [(pruner, row) for pruner in pruners if host.hosts(pruner) for row in host.rows]

    def call(item: tuple[Pruner, int]) -> Prefilled:
        return host.prefill(item[0], host.rows[item[1]])

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), remembering_encodings(signals(host)):
            expected = list(map(call, calls))
            # Threads remember nothing of this one: each encodes for itself.
            found = at_once(call, calls)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, expected, strict=True):
        for mine, its in zip(one.report.images, other.report.images, strict=True):
            assert torch.equal(mine.selection.index, its.selection.index)
        assert torch.equal(embeddings(one), embeddings(other))


def test_methods_that_say_they_merge_do():
    """On some family; that no other method does is asserted above."""
    case = CASES["llava"]
    model = case.model()
    inputs = case.make(model, [[0]])
    for name in list_pruners("before the language model"):
        if pruner_class(name).merges:
            report = prefill(model, find_family(model), configured(name, 3), Policy(), inputs).report
            assert report.images[0].selection.into is not None


@pytest.mark.parametrize("family", THINNED)
def test_every_method_inside_on_every_family(family):
    case, model = CASES[family], deep(family)
    inputs = case.make(model, [[0], [case.kinds - 1, 0], []])
    options = {"max_new_tokens": 2, "do_sample": False, "suppress_tokens": [IMAGE, VIDEO]}
    for name in list_pruners("inside the language model"):
        for keep in (None, 0.5):
            with prune(model, None, inside=get_pruner(name, keep=keep)) as session:
                output = model.generate(**inputs, **options)
            assert torch.equal(output[:, :-2], inputs["input_ids"])
            (report,) = session.reports
            for image in report.images:
                assert max(image.read) == image.kept == image.total
                off = 0.5 if get_pruner(name).is_exact() else image.kept / 8
                assert keep is None or abs(image.average - Budget(keep).count(image.total)) <= off
