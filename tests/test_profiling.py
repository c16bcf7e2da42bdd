from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from zooprune.cache_names import CACHE
from zooprune.costs import UNGATED, generation_flops, kv_cache_bytes, largest_saving, prefill_flops, tower_flops
from zooprune.profiling import Timings, note, recording, stage  # fmt: skip


def count(model, tokens):
    """Let torch count; its plain attention computes all pairs, the fused kernels are not counted alike everywhere."""
    ids = torch.full((1, tokens), 7)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, logits_to_keep=1)
    return counter.get_total_flops()


@pytest.mark.parametrize("tokens", [1, 37])
def test_flops_are_what_torch_counts(model, tokens):
    assert prefill_flops(model.config.text_config, tokens) == count(model, tokens)


@pytest.mark.parametrize("kind", [*sorted(UNGATED), "qwen3", "gemma2", "mistral"])
def test_flops_of_other_text_models_are_what_torch_counts(kind):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    shared = {} if kind in ("gpt_neox", "phi") else {"num_key_value_heads": 2}
    wide = {"head_dim": 16} if kind in ("qwen3", "gemma2") else {}
    config = AutoConfig.for_model(kind, vocab_size=60, pad_token_id=0, **sizes, **shared, **wide)
    assert prefill_flops(config, 11) == count(AutoModelForCausalLM.from_config(config).eval(), 11)


def test_cache_bytes_are_what_the_cache_holds(model):
    cache = model(input_ids=torch.full((1, 23), 7), use_cache=True)[CACHE]
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert kv_cache_bytes(model.config.text_config, 23, torch.float32) == held


def test_a_bigger_model_by_hand():
    """LLaVA-1.5-7B's text model: 6.5 billion weights in its layers, half a megabyte of cache a token."""
    config = AutoConfig.for_model("llama", vocab_size=32064)
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert prefill_flops(config, 640) == 2 * (640 * weights + 32 * 2 * 640**2 * 4096 + 4096 * 32064)
    assert kv_cache_bytes(config, 1, torch.float16) == 2**19


def test_stages_add_up_and_only_while_recording():
    device = torch.device("cpu")
    timings = Timings()
    with stage("idle", device):
        pass
    with recording(timings):
        for _ in range(2):
            with stage("work", device):
                sum(range(1000))
    once = timings.seconds()
    assert set(once) == {"work"} and once["work"] > 0
    assert timings.seconds() == once


def counted(work) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


def test_flops_of_an_answer_are_what_torch_counts(model):
    ids = torch.full((1, 11), 7)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    text = model.config.text_config
    assert generation_flops(text, 11, 4) == counted(lambda: model.generate(ids, **options))
    assert generation_flops(text, 11, 1) == prefill_flops(text, 11)


def test_flops_of_a_tower_are_what_torch_counts():
    config = AutoConfig.for_model("clip_vision_model", hidden_size=24, intermediate_size=40, num_hidden_layers=3,
                                  num_attention_heads=2, image_size=84, patch_size=14)  # fmt: skip
    tower = CLIPVisionModel(config).eval()
    # The class token is no patch of pixels.
    pixels = 2 * 24 * 3 * 14 * 14
    assert tower_flops(config, 37) - pixels == counted(lambda: tower(torch.randn(1, 3, 84, 84)))


def test_flops_of_a_tower_with_windows_are_what_torch_counts():
    config = AutoConfig.for_model("qwen2_5_vl", vision_config={
        "hidden_size": 32, "intermediate_size": 48, "depth": 4, "num_heads": 2, "out_hidden_size": 32,
        "fullatt_block_indexes": [1, 3],
    }).vision_config  # fmt: skip
    tower = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    merger = 2 * (16 * 16 // 4) * (128 * 128 + 128 * 32)
    work = counted(lambda: tower(torch.randn(256, 3 * 2 * 14 * 14), grid_thw=torch.tensor([[1, 16, 16]])))
    assert tower_flops(config, 256) + merger == work


def test_the_largest_saving_by_hand():
    config = AutoConfig.for_model("llama", vocab_size=32064)
    common = {"visual": 576, "kept": 64, "text": 55}
    alone = 1 - prefill_flops(config, 119) / prefill_flops(config, 631)
    assert largest_saving(config, tower=0, new_tokens=1, balance=200, **common) == pytest.approx(alone)
    weights = 2 * (32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32064)
    full, cut = (prefill_flops(config, n) + 200 * (weights + (n + 1) * 2**19) + 10**12 for n in (631, 119))
    assert largest_saving(config, tower=10**12, new_tokens=2, balance=200, **common) == pytest.approx(1 - cut / full)


def test_notes_are_kept_while_recording():
    note("lost", 1)
    timings = Timings()
    with recording(timings):
        note("rank", 64)
    assert timings.notes == {"rank": 64}
