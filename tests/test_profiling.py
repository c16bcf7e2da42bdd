from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from zooprune.profiling import UNGATED, Timings, kv_cache_bytes, prefill_flops, recording, stage


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
    cache = model(input_ids=torch.full((1, 23), 7), use_cache=True).past_key_values
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
