"""What the vLLM plug-in is asked for, and positions on three axes; without vLLM itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from zooprune import list_pruners
from zooprune.families.tiling import grid_positions
from zooprune.integrations.vllm import kept
from zooprune.integrations.vllm.checkpoint import write_for_vllm
from zooprune.integrations.vllm.configuration import Asked, Pruning, RefusedError, reason_against, split_request
from zooprune.integrations.vllm.kept import Memory, reports
from zooprune.integrations.vllm.mrope import PrunedMRoPE, with_places, without_places
from zooprune.integrations.vllm.projector import ProjectorCopy
from zooprune.tokens import VisualTokens
from zooprune.visuals import Visual


def test_a_configuration_is_read_from_json_and_back():
    pruning = Pruning.read('{"method": "zoo", "keep": 64, "options": {"fusion": "sum"}, "dropped": "mean"}')
    assert (pruning.method, pruning.keep, pruning.options) == ("zoo", 64, {"fusion": "sum"})
    assert Pruning.read(pruning.as_json()) == pruning and json.loads(pruning.key) == pruning.as_json()
    assert str(pruning) == "method zoo, 64 tokens per image, fusion=sum, dropped=mean"
    assert str(Pruning("zoo", 0.25)) == "method zoo, 25.0% of the tokens per image"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "is not JSON"),
        ([1], "is no JSON object"),
        ({"method": "zoo"}, "lacks keep"),
        ({"method": "zoo", "keep": 64, "budget": 1}, "does not know budget"),
        ({"method": 3, "keep": 64}, "method must be a name"),
        ({"method": "zoo", "keep": 64, "options": 3}, "options an object"),
        ({"method": "zo", "keep": 64}, "unknown method 'zo'; did you mean 'zoo'"),
        ({"method": "zoo", "keep": 64, "options": {"m": 3}}, "zoo has no option m"),
        ({"method": "zoo", "keep": 0}, "leaves no visual token"),
        ({"method": "zoo", "keep": 1.5}, "is not a share"),
        ({"method": "zoo", "keep": "64"}, "keep must be an int"),
        ({"method": "zoo", "keep": 64, "scope": "row"}, "is not one of"),
        ({"method": "zoo", "keep": 64, "scope": "prompt"}, "every image by itself"),
        ({"method": "zoo", "keep": 64, "dropped": "stand in"}, 'takes no bias; give "mean"'),
        ({"method": "none", "keep": 64}, "leave the configuration out"),
        ({"method": "anchorprune", "keep": 64}, "reads tower_attention"),
        ({"method": "visionzip", "keep": 64}, "reads tower_attention"),
        ({"method": "prumerge", "keep": 64, "options": {"native": True}}, "exact number"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(given, message):
    with pytest.raises(RefusedError, match=r"^zooprune: ") as caught:
        Pruning.read(given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_every_method_is_served_or_refused_with_a_reason():
    served = [name for name in list_pruners() if reason_against(name) is None]
    assert set(served) >= {"zoo", "sensitivity", "diversity", "random", "cdpruner", "catp", "eadp"}
    for name in served:
        Pruning(name, 64)
    for name in set(list_pruners()) - set(served):
        with pytest.raises(RefusedError):
            Pruning(name, 64)


def test_requests_may_ask_for_fewer_tokens():
    pruning = Pruning("zoo", 0.5)
    assert pruning.rows(100) == 50 and pruning.rows(100, 20) == 20 and pruning.rows(100, 0.25) == 25
    with pytest.raises(ValueError, match="at most 50"):
        pruning.rows(100, 51)
    assert split_request({"zooprune": {"keep": 3}, "size": 1}) == (Asked(3), {"size": 1})
    assert split_request({"size": 1}) == (Asked(), {"size": 1})
    for wrong in (3, {}, {"keep": 3, "method": "zoo"}, {"keep": "3"}, {"keep": 0}, {"keep": True}):
        with pytest.raises(ValueError, match="keep"):
            split_request({"zooprune": wrong})


def test_a_question_comes_along_where_it_is_read():
    assert split_request({"zooprune": {"question": "Why?"}}) == (Asked(question="Why?"), {})
    for wrong in (3, "  ", ["Why?"]):
        with pytest.raises(ValueError, match="question must be a text"):
            split_request({"zooprune": {"question": wrong}})
    reading, blind = Pruning("cdpruner", 64), Pruning("zoo", 64)
    assert reading.reads_question and not blind.reads_question
    reading.check(Asked(question="Why?"))
    blind.check(Asked(3))
    with pytest.raises(ValueError, match="cdpruner reads the question"):
        reading.check(Asked(3))
    with pytest.raises(ValueError, match="zoo reads no question"):
        blind.check(Asked(question="Why?"))


def test_a_label_can_be_part_of_an_address():
    assert split_request({"zooprune": {"label": "a-Z_0.9"}}) == (Asked(label="a-Z_0.9"), {})
    for wrong in (3, "", "a/b", "a b", "ä", "x" * 65):
        with pytest.raises(ValueError, match="label must be 1 to 64 letters"):
            split_request({"zooprune": {"label": wrong}})


def _places(rows: int, columns: int) -> torch.Tensor:
    return grid_positions(rows, columns, device="cpu")


def _image(rows: int, columns: int, newlines: bool) -> Visual:
    count = rows * columns
    tokens = VisualTokens(torch.zeros(count, 2), torch.zeros(count, 2), lambda x: x, _places(rows, columns))
    if not newlines:
        return Visual.plain(tokens)
    places = torch.arange(rows * (columns + 1)).view(rows, -1)
    return Visual(tokens, rows * (columns + 1), places[:, :-1].flatten(), places[:, -1].repeat_interleave(columns))


def test_what_is_kept_comes_back_as_reports():
    """Separators are counted apart; images come in the order of the request, whatever was encoded first."""
    memory = Memory()
    memory.remember("one", 1, _image(2, 3, newlines=True), torch.tensor([0, 3, 5, 7]))
    memory.remember("one", 0, _image(2, 2, newlines=False), torch.tensor([1, 2]))
    first, second = reports(json.loads(json.dumps(memory.images("one"))))
    assert first.selection.index.tolist() == [1, 2] and (first.kept, first.total) == (2, 4)
    # Slots 3 and 7 are newlines.
    assert second.selection.index.tolist() == [0, 4] and (second.kept, second.total) == (4, 8)
    assert second.separators == (2, 2) and torch.equal(second.positions, _places(2, 3))
    assert memory.images("two") == []


def test_the_oldest_label_is_forgotten(monkeypatch):
    monkeypatch.setattr(kept, "REMEMBERED", 2)
    memory, image = Memory(), _image(1, 2, newlines=False)
    for label in ("one", "two", "one", "three"):
        memory.remember(label, 0, image, torch.tensor([1]))
    assert [bool(memory.images(label)) for label in ("one", "two", "three")] == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_places_pass_through_coarse_numbers(dtype):
    rows = torch.randn(300, 8, dtype=dtype)
    places = torch.stack([torch.arange(300) * step for step in (1, 7, 50)], dim=1)
    plain, found = without_places(with_places(rows, places))
    assert torch.equal(plain, rows) and torch.equal(found, places)


@dataclass(frozen=True)
class Place:
    offset: int
    length: int


@dataclass(frozen=True)
class Feature:
    mm_position: Place
    data: dict
    modality: str = "image"


@dataclass
class Counting:
    """Counts positions as Qwen's models do, for whole images."""

    config: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            vision_config=SimpleNamespace(spatial_merge_size=2), image_token_id=3, video_token_id=2
        )
    )

    def get_mrope_input_positions(self, tokens, features):
        columns, last, read = [], -1, 0
        for feature in features:
            text = torch.arange(feature.mm_position.offset - read) + last + 1
            columns.append(text.expand(3, -1))
            last += len(text)
            _, rows, width = (feature.data["image_grid_thw"].data // torch.tensor([1, 2, 2])).tolist()
            assert feature.mm_position.length == rows * width
            grid = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(width)).T + last + 1
            columns.append(grid)
            last, read = int(grid.max()), feature.mm_position.offset + rows * width
        columns.append((torch.arange(len(tokens) - read) + last + 1).expand(3, -1))
        positions = torch.cat(columns, dim=1)
        return positions, int(positions.max()) + 1 - len(tokens)


class Pruned(PrunedMRoPE, Counting):
    pass


@pytest.mark.parametrize("chunk", [3, 5, 100])
def test_kept_tokens_get_their_positions_in_chunks_of_any_size(chunk):
    """Two images of 2 x 3 and 4 x 2 tokens, of which three and two stay."""
    model, grids, kept = Pruned(), [(1, 4, 6), (1, 8, 4)], [[0, 2, 4], [3, 6]]
    whole = [7, 4, *[3] * 6, 5, 8, 4, *[3] * 8, 5, 9, 9]
    stays = torch.ones(len(whole), dtype=torch.bool)
    stays[2:8], stays[11:19] = False, False
    stays[[2 + slot for slot in kept[0]] + [11 + slot for slot in kept[1]]] = True
    full, _ = Counting().get_mrope_input_positions(
        whole, [Feature(Place(2, 6), _grid(grids[0])), Feature(Place(11, 8), _grid(grids[1]))]
    )
    expected = full[:, stays]
    tokens = [token for token, stay in zip(whole, stays.tolist(), strict=True) if stay]
    features = [Feature(Place(2, 3), _grid(grids[0])), Feature(Place(8, 2), _grid(grids[1]))]
    positions, ahead = model.get_mrope_input_positions(tokens, features)
    text = torch.tensor(tokens) != 3
    assert torch.equal(positions[:, text], expected[:, text])
    assert ahead == int(expected[:, -1].max()) + 1 - len(tokens)
    rows = []
    for (_, _, width), slots in zip(grids, kept, strict=True):
        places = torch.tensor([[0, slot // (width // 2), slot % (width // 2)] for slot in slots])
        rows.append(with_places(torch.randn(len(slots), 4), places))
    for start in range(0, len(tokens), chunk):
        inside = [
            image[max(0, start - offset) : max(0, start + chunk - offset)]
            for image, offset in zip(rows, (2, 8), strict=True)
        ]
        inside = [part for part in inside if len(part)]
        plain, positions, ahead = model.recompute_mrope_positions(tokens, inside, positions, start)
        assert [part.shape[1] for part in plain] == [4] * len(inside)
    assert torch.equal(positions, expected)
    assert ahead == int(expected[:, -1].max()) + 1 - len(tokens)


def _grid(grid):
    return {"image_grid_thw": SimpleNamespace(data=torch.tensor(grid))}


def test_the_projector_is_copied_from_a_stream_of_weights():
    source, copy = torch.nn.Linear(3, 2), ProjectorCopy(torch.nn.Linear(3, 2), "visual.merger.")
    stream = [
        ("model.visual.merger.weight", source.weight),
        ("visual.merger.bias", source.bias),
        ("other.bias", source.bias),
    ]
    assert list(copy.listening(iter(stream))) == stream
    assert torch.equal(copy.projector.weight, source.weight) and torch.equal(copy.projector.bias, source.bias)
    with pytest.raises(RefusedError, match=r"lacks visual\.merger\.bias"):
        list(copy.listening(iter(stream[:1])))
    with pytest.raises(RefusedError, match="weight is quantised"):
        list(copy.listening(iter([("visual.merger.weight", torch.zeros(2, 3, dtype=torch.int8))])))


def test_a_checkpoint_gets_the_names_of_the_hub(tmp_path):
    from safetensors.torch import load_file

    from zooprune.bundled import BUNDLED_FOLDER

    write_for_vllm(BUNDLED_FOLDER, tmp_path / "once")
    write_for_vllm(tmp_path / "once", tmp_path / "twice")
    ours, once, twice = (
        load_file(folder / "model.safetensors") for folder in (BUNDLED_FOLDER, tmp_path / "once", tmp_path / "twice")
    )
    assert set(once) == set(twice) != set(ours) and len(once) == len(ours)
    assert "vision_tower.vision_model.embeddings.class_embedding" in once
    assert (tmp_path / "once" / "tokenizer.json").exists()
