"""The plug-in inside vLLM's real engine, against transformers; run by `make test-vllm`."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

# vLLM itself touches names that torch is giving up.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore::FutureWarning")]

if pytest.importorskip("vllm", reason="needs vLLM: make test-vllm"):
    import torch

    import vllm_models
    from vllm_models import (
        MODELS,
        VIDEO,
        Request,
        alike,
        by_transformers,
        by_vllm,
        engine,
        kept_by_transformers,
        requests,
        save,
        save_adapter,
        video,
    )
    from zooprune.integrations.vllm.kept import METHOD, reports

ZOO = {"method": "zoo", "keep": 9}
#: Images so large that chunks of a prompt end inside them.
CHUNKED = {"max_num_batched_tokens": 8, "max_num_seqs": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folder of a tiny model, by its name."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = save(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder


def _like_the_engine(name):
    """Return the positions that tokens of a model have in vLLM."""
    return {"positions": "contiguous" if name.startswith("llava") else "original"}


@pytest.mark.parametrize("name", MODELS)
def test_replies_are_those_of_transformers(folders, name):
    """All sizes at once, two images, text alone; again from the caches; then with a smaller budget for some."""
    folder, asked, options = folders(name), requests(MODELS[name][1]), _like_the_engine(name)
    expected = by_transformers(folder, asked, "zoo", keep=9, **options)
    unpruned = by_transformers(folder, asked)
    assert any(
        one.tokens != other.tokens or one.logprobs != other.logprobs
        for one, other in zip(expected, unpruned, strict=True)
    )
    with engine(folder, ZOO) as llm:
        alike(by_vllm(llm, asked), expected)
        alike(by_vllm(llm, asked), expected)
        alike(by_vllm(llm, asked, zooprune={"keep": 4}), by_transformers(folder, asked, "zoo", keep=4, **options))
        with pytest.raises(ValueError, match="at most 9"):
            by_vllm(llm, asked[:1], zooprune={"keep": 10})
        alike(by_vllm(llm, asked), expected)


@pytest.mark.parametrize("name", MODELS)
def test_what_was_kept_can_be_asked_for(folders, name):
    """Under the label of a request, and for no other; two images at once, and the same one twice."""
    folder, asked, options = folders(name), requests(MODELS[name][1])[:5], _like_the_engine(name)
    twice = Request(asked[4].text, asked[0].images * 2)
    with engine(folder, ZOO) as llm:
        by_vllm(llm, asked)
        assert llm.collective_rpc(METHOD, args=("first",)) == [[]]
        for request, label, zooprune in (
            (asked[0], "first", {}),
            (asked[1], "second", {"keep": 4}),
            (asked[4], "two", {}),
            (asked[2], "all", {"keep": 9}),
            (twice, "twice", {}),
        ):
            replies = by_vllm(llm, [request], zooprune=zooprune | {"label": label})
            pruned = options | {"keep": 9} | zooprune
            alike(replies, by_transformers(folder, [request], "zoo", **pruned))
            (images,) = llm.collective_rpc(METHOD, args=(label,))
            expected = kept_by_transformers(folder, request, "zoo", **pruned)
            assert [image["image"] for image in images] == ([0] if label == "twice" else list(range(len(expected))))
            for report, other in zip(reports(images), expected, strict=label != "twice"):
                assert torch.equal(report.selection.index, other.selection.index)
                assert torch.equal(report.positions, other.positions)
                assert (report.kept, report.total) == (other.kept, other.total)


@pytest.mark.parametrize(
    ("configured", "engines", "status", "told"),
    [({}, 1, 404, "this server prunes nothing"), ({"zooprune": ZOO}, 2, 501, "only one engine answers")],
)
def test_an_address_that_cannot_answer_says_why(configured, engines, status, told):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from zooprune.integrations.vllm.endpoint import KeptEndpoint

    app = FastAPI()
    KeptEndpoint().attach_router(app)
    parallel = SimpleNamespace(data_parallel_size=engines)
    app.state.engine_client = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=SimpleNamespace(**configured)),
        vllm_config=SimpleNamespace(parallel_config=parallel),
    )
    answer = TestClient(app).get("/v1/zooprune/kept/label")
    assert answer.status_code == status and told in answer.text


@pytest.mark.parametrize("name", MODELS)
def test_chunks_end_inside_images_and_hits_begin_there(folders, name):
    """Means of what is dropped; a share as the budget; a second question on the same image after a prefix of it."""
    folder, marker = folders(name), MODELS[name][1]
    asked = requests(marker)
    asked += [Request(one.text + " w21 w22", one.images) for one in asked]
    policy = {"dropped": "mean"} | ({"scope": "tile", "newlines": "rows"} if name == "llava_next" else {})
    expected = by_transformers(folder, asked, "diversity", keep=0.4, **policy, **_like_the_engine(name))
    with engine(folder, {"method": "diversity", "keep": 0.4} | policy, **CHUNKED) as llm:
        alike(by_vllm(llm, asked[:6]), expected[:6])
        alike(by_vllm(llm, asked), expected)


def test_methods_that_read_the_question_get_it_from_the_request(folders):
    """Given all of a prompt's text, they choose as in transformers, where they read all of it; other text, others."""
    folder = folders("llava")
    asked = [one for one in requests("<image>") if len(one.images) == 1]
    expected = by_transformers(folder, asked, "cdpruner", keep=9, positions="contiguous")
    with engine(folder, {"method": "cdpruner", "keep": 9}) as llm:
        for one, reply in zip(asked, expected, strict=True):
            question = one.text.replace("<image> ", "")
            alike(by_vllm(llm, [one], zooprune={"question": question}), [reply])
            alike(by_vllm(llm, [one], zooprune={"question": question}), [reply])
        others = by_vllm(llm, asked, zooprune={"question": "w40 w41 w42"})
        assert any(other.logprobs != reply.logprobs for other, reply in zip(others, expected, strict=True))
        with pytest.raises(ValueError, match="reads the question"):
            by_vllm(llm, asked[:1])
        alike(by_vllm(llm, [Request("w11 w12 w13 w14")]), by_transformers(folder, [Request("w11 w12 w13 w14")]))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_an_adapter_reads_the_same_images(folders, name, tmp_path):
    """Requests through a LoRA adapter, without it, and through it again, from the same encoded images.

    Not in one batch: on a CPU vLLM 0.32 then sends all of them through the adapter, unpruned as well.
    """
    folder, asked, options = folders(name), requests(MODELS[name][1]), _like_the_engine(name)
    adapter = save_adapter(folder, tmp_path / "adapter")
    plain = by_transformers(folder, asked, "zoo", keep=9, **options)
    adapted = by_transformers(folder, asked, "zoo", keep=9, adapter=adapter, **options)
    assert all(one.tokens != other.tokens for one, other in zip(plain, adapted, strict=True))
    with engine(folder, ZOO, enable_lora=True, max_lora_rank=8) as llm:
        for through, expected in ((adapter, adapted), (None, plain), (adapter, adapted)):
            alike(by_vllm(llm, asked, adapter=through), expected)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_videos_are_served_whole_beside_pruned_images(folders, name):
    """Videos alone, and beside images of which all is kept, give the replies of vLLM itself.

    What vLLM makes of videos is not all what transformers makes of them, so the two are not compared. Beside a pruned
    image, whole prompts, repeated ones and prompts in chunks are the same.
    """
    folder, marker = folders(name), MODELS[name][1]
    tall, limits = requests(marker)[0].images, {"limit_mm_per_prompt": {"image": 2, "video": 1}}
    alone = [Request(f"w7 {VIDEO} w8", (), (video(*size),)) for size in ((16, 16, 1), (40, 24, 9))]
    mixed = [
        Request(f"w7 {VIDEO} w8 {marker} w9 w3", tall, alone[1].videos),
        Request(f"w7 {marker} w8 {VIDEO} w9 w3", tall, (video(24, 40, 5),)),
    ]
    with engine(folder, **limits) as llm:
        whole = by_vllm(llm, alone + mixed)
    with engine(folder, {"method": "zoo", "keep": 1.0}, **limits) as llm:
        alike(by_vllm(llm, alone + mixed), whole)
        pruned = by_vllm(llm, alone + mixed, zooprune={"keep": 9})
        alike(pruned[:2], whole[:2])
        # The image has 16 tokens more.
        assert [one.prompt for one in pruned[2:]] == [one.prompt - 7 for one in whole[2:]]
        alike(by_vllm(llm, alone + mixed, zooprune={"keep": 9}), pruned)
    with engine(folder, ZOO, **limits, **CHUNKED) as llm:
        alike(by_vllm(llm, alone + mixed), pruned)


def test_the_engine_lives_on_when_choosing_fails(folders, monkeypatch, caplog):
    from zooprune.integrations.vllm import choosing

    folder, asked = folders("llava"), requests("<image>")
    expected = by_transformers(folder, asked, "zoo", keep=9, positions="contiguous")

    def fail(*_):
        raise ValueError("out of luck")

    with engine(folder, ZOO) as llm:
        with monkeypatch.context() as patch:
            patch.setattr(choosing, "spend", fail)
            failed = by_vllm(llm, asked)
            assert [one.prompt for one in failed] == [one.prompt for one in expected]
        llm.llm_engine.engine_core.engine_core.scheduler.reset_prefix_cache()
        llm.reset_mm_cache()
        llm.llm_engine.reset_encoder_cache()
        alike(by_vllm(llm, asked), expected)


def test_without_a_configuration_nothing_is_touched(folders):
    from vllm.model_executor.model_loader import get_model_cls
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

    folder, asked = folders("qwen2_5_vl"), requests(MODELS["qwen2_5_vl"][1])
    with engine(folder) as llm:
        assert get_model_cls(llm.llm_engine.model_config) is Qwen2_5_VLForConditionalGeneration
        alike(by_vllm(llm, asked), by_transformers(folder, asked))


def test_the_variable_configures_as_well(folders, monkeypatch):
    monkeypatch.setenv("ZOOPRUNE_VLLM", json.dumps(ZOO))
    folder, asked = folders("llava"), requests("<image>")[:2]
    with engine(folder, compilation_config={"mode": 0}) as llm:
        alike(by_vllm(llm, asked), by_transformers(folder, asked, "zoo", keep=9, positions="contiguous"))
    with pytest.raises(RuntimeError, match="configured twice"), engine(folder, ZOO):
        pass


@pytest.mark.parametrize(
    ("pruning", "options", "message"),
    [
        ({"method": "zo", "keep": 9}, {}, "unknown method"),
        ({"method": "zoo", "keep": 9}, {"mm_processor_kwargs": {"zooprune": {"keep": 3}}}, "is for requests"),
        ({"method": "zoo", "keep": 9}, {"limit_mm_per_prompt": {"image": 0}}, "no images"),
        ({"method": "zoo", "keep": 9}, {"enable_mm_embeds": True}, "leave out --enable-mm-embeds"),
        ({"method": "zoo", "keep": 9}, {"enable_lora": True, "enable_tower_connector_lora": True}, "without adapters"),
        ({"method": "zoo", "keep": 9}, {"video_pruning_rate": 0.5}, "leave out --video-pruning-rate"),
        ({"method": "evs", "keep": 9}, {}, "made for videos, which are served whole"),
        ({"method": "zoo", "keep": 9}, {"load_format": "sharded_state"}, "does not show the projector"),
        ({"method": "zoo", "keep": 9}, {"compilation_config": {"cudagraph_mm_encoder": True}}, "CUDA graphs"),
    ],
)
def test_what_cannot_be_done_stops_the_engine(folders, pruning, options, message):
    with pytest.raises(RuntimeError, match=message), engine(folders("llava"), pruning, **options):
        pass


def test_other_models_stop_the_engine(tmp_path):
    import transformers

    import real_processors

    config = transformers.LlamaConfig(**vllm_models.TEXT)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    real_processors.tokenizer("<image>").save_pretrained(tmp_path)
    with (
        pytest.raises(RuntimeError, match="LlamaForCausalLM cannot be pruned"),
        engine(tmp_path, ZOO, limit_mm_per_prompt={}),
    ):
        pass


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_two_ranks_choose_alike(folders, name, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    folder, asked = folders(name), requests(MODELS[name][1])
    expected = by_transformers(folder, asked, "zoo", keep=9, **_like_the_engine(name))
    with engine(folder, ZOO, tensor_parallel_size=2) as llm:
        alike(by_vllm(llm, asked), expected)
        by_vllm(llm, asked[:1], zooprune={"label": "one"})
        first, second = llm.collective_rpc(METHOD, args=("one",))
        assert first == second != []
