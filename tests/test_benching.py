"""The benchmarks on shapes small enough for a test: what they compare is what they say, and the rows are whole."""

from __future__ import annotations

import base64
import io
import json
import sys

import pytest
import torch
from PIL import Image
from rich.console import Console

from test_cli import command  # noqa: F401
from zooprune import ZooPrune, prune, sensitivity
from zooprune.benching import QUESTIONS, end_to_end, measure, measuring, paper, serving, shapes
from zooprune.benching.table import table
from zooprune.policy import Policy
from zooprune.selection import greedy_diverse

VISION = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
}  # fmt: skip
TEXT = {
    "model_type": "llama", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 60,
}  # fmt: skip
FIELDS = {"provider", "p20", "p50", "p80", "times_faster", "peak_bytes", "flops", "flops_per_second", "environment"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Add a shape of a few thousand weights."""
    monkeypatch.setitem(shapes.SHAPES, "tiny", shapes.Shape("llava", VISION, TEXT, 16, (8, 4)))


@pytest.mark.parametrize("question", QUESTIONS)
def test_rows_are_whole_and_fit_a_terminal(question):
    rows = measure(question, "tiny", repeats=2, device="cpu")
    json.dumps(rows)
    for row in rows:
        assert row["environment"]["versions"]["torch"] and row["environment"]["cores"]
        if question != "memory":
            assert set(row) >= FIELDS and 0 < row["p20"] <= row["p50"] <= row["p80"] and row["flops"] > 0
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(rows, question))
    lines = console.export_text().splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert not any("…" in line for line in lines)


def test_every_provider_scores_alike():
    shape = shapes.SHAPES["tiny"]
    projector, features = shape.projector(), torch.randn(16, shape.d_vision)
    exact = sensitivity.closed_form(projector, features)
    torch.testing.assert_close(paper.finite_differences(projector, features, directions=2000), exact, rtol=0.05, atol=0)


def test_the_plain_loop_picks_the_same():
    generator = torch.Generator().manual_seed(0)
    embeddings, weights = torch.randn(70, 9, generator=generator), torch.rand(70, generator=generator)
    assert torch.equal(paper.plain_loop(embeddings, weights, 33), greedy_diverse(embeddings, weights, 33))


def test_the_method_as_published_prunes_a_request():
    shape = shapes.SHAPES["tiny"]
    model, inputs = shape.model(), shape.inputs()
    report = end_to_end.pruned(model, inputs, paper.AsPublished(keep=5), Policy(), {"max_new_tokens": 1})
    assert report.kept == 5


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
def test_the_limit_is_the_request_whose_first_tokens_are_kept(name, batch):
    tower = {"hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2, "out_hidden_size": 48,
             "fullatt_block_indexes": [1]}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    qwen = TEXT | {"model_type": "qwen2_5_vl_text", "num_key_value_heads": 2, "rope_parameters": rope}
    shape = {
        "llava": shapes.SHAPES["tiny"],
        "llava_next": shapes.Shape("llava_next", VISION | {"image_size": 336, "num_hidden_layers": 3}, TEXT, 2880),
        "qwen2_5_vl": shapes.Shape("qwen2_5_vl", tower, qwen, 16),
    }[name]
    model, inputs = shape.model(torch.float32), shape.inputs(dtype=torch.float32, batch=batch)
    options = {"max_new_tokens": 3, "do_sample": False}
    with torch.no_grad(), prune(model, end_to_end.FirstTokens(6)) as session:
        limit = end_to_end.without_choosing(model, inputs, session.prepare(inputs))
        expected = model.generate(**inputs, **options)[:, -3:]
    assert [image.selection.total for image in session.reports[-1].images] == [shape.tokens] * batch
    assert torch.equal(limit(**options)[:, -3:], expected)


def test_rounds_are_paired_and_the_first_provider_is_the_measure():
    ran = []
    rows = measuring.time_in_turn(
        {"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, repeats=3, flops={"a": 1, "b": 1}
    )
    assert ran[-6:] == ["a", "b"] * 3
    assert rows[0]["times_faster"] == 1.0 and rows[1]["provider"] == "b"


def test_the_peak_is_what_was_held_at_most():
    def work() -> None:
        torch.ones(64, 2**20)

    peak = measuring.peak_bytes(work, torch.device("cpu"))
    assert peak is None or 0.99 * 2**28 <= peak < 2**29


def test_the_report_says_how_the_closed_form_was_kept():
    shape = shapes.Shape("llava", VISION, TEXT | {"hidden_size": 512}, 16, (4,))
    model, inputs = shape.model(torch.float32), shape.inputs(dtype=torch.float32)
    with prune(model, ZooPrune(keep=4, rank=8)) as session:
        model.generate(**inputs, max_new_tokens=1)
    notes = session.reports[-1].notes
    assert notes["closed_form"] == "diagonal + 8 columns" and 0 < notes["rank_correlation"] < 1


def test_shapes_have_the_published_numbers_of_weights():
    billions = {"llava-1.5-7b": 7.06, "llava-1.5-13b": 13.35, "llava-next-7b": 7.06, "qwen2.5-vl-7b": 8.29}
    for name, expected in billions.items():
        with torch.device("meta"):
            model = shapes.SHAPES[name].model(device="meta")
        assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(expected, abs=0.02)


def test_the_command_line_measures(command):  # noqa: F811
    code, out, err = command("bench", "selection", "--shape", "tiny", "--repeats", "1", "--json")
    assert code == 0 and err == "" and {row["provider"] for row in json.loads(out)["selection"]} >= {"zooprune"}
    code, out, _ = command("bench", "selection", "--shape", "tiny", "--repeats", "1")
    assert code == 0 and "published" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["speed"], "choose one of sensitivity, selection"), (["--shape", "huge"], "choose one of small"),
     (["--device", "toaster"], "use auto, cpu or cuda")],
)  # fmt: skip
def test_bad_questions_are_one_line(command, arguments, message):  # noqa: F811
    code, out, err = command("bench", *arguments)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_requests_are_mixed():
    made = serving.make_requests(100)
    assert [sum(one.kind == kind for one in made) for kind in ("image", "text", "broken")] == [70, 20, 10]
    sizes = set()
    for one in made:
        shown = [part for part in one.content if part["type"] == "image_url"]
        assert len(shown) == (one.kind != "text")
        if one.kind == "image":
            data = base64.b64decode(shown[0]["image_url"]["url"].partition(",")[2])
            sizes.add(Image.open(io.BytesIO(data)).size)
    assert len(sizes) == 6


def test_percentiles_are_values_that_were_measured():
    values = [float(number) for number in range(1, 101)]
    assert [serving._percentile(values, percent) for percent in (50, 90, 99)] == [50, 90, 99]
    assert serving._percentile([3.0], 99) == 3 and serving._percentile([], 50) is None


def test_a_load_needs_a_client(command, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "openai", None)
    code, out, err = command("bench", "serve")
    assert code == 2 and out == "" and "pip install 'zooprune[report]'" in err and err.count("\n") == 1
