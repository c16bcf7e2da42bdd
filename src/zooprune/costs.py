"""FLOPs and KV-cache bytes, from a model's configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Text models whose feed-forward network has two matrices; all others are taken to be gated, with three.
UNGATED = frozenset({"gpt_neox", "nemotron", "phi", "starcoder2"})


#: Tokens that every layer of a decoder reads, or those that each of them reads.
Lengths = int | Sequence[int]


def prefill_flops(config: PreTrainedConfig, tokens: Lengths) -> int:
    """Return the floating-point operations of reading a prompt with a dense decoder; a multiply-add counts two.

    With N tokens, L layers, width d, feed-forward width f, h heads of d_h, of which g have keys and values, and a
    vocabulary of V:  2 (L (N (2 d h d_h + 2 d g d_h + 3 d f) + 2 N^2 h d_h) + d V),  2 d f for the models in `UNGATED`.
    Attention counts all pairs of tokens, masked ones included; the output head counts for the last token alone;
    norms, activations and softmax do not count.

    Parameters
    ----------
    config : PreTrainedConfig
        The text model's configuration.
    tokens : int or sequence of int
        Prompt length, visual tokens included; layer by layer where tokens are pruned inside the language model.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or width // heads
    projections = 2 * width * heads * head + 2 * width * shared * head
    feed_forward = (2 if config.model_type in UNGATED else 3) * width * config.intermediate_size
    layers = sum(
        count * (projections + feed_forward) + 2 * count * count * heads * head for count in _by_layer(config, tokens)
    )
    return 2 * (layers + width * config.vocab_size)


def _by_layer(config: PreTrainedConfig, tokens: Lengths) -> Sequence[int]:
    return [tokens] * config.num_hidden_layers if isinstance(tokens, int) else tokens


def generation_flops(config: PreTrainedConfig, prompt: Lengths, new_tokens: int) -> int:
    """Return the floating-point operations of reading a prompt and writing `new_tokens`, counted as `prefill_flops`.

    Every new token but the last is read again by itself, against a cache of all before it.
    """
    one, pairs = prefill_flops(config, 1), _pair_flops(config) // config.num_hidden_layers
    # A single token attends to itself alone, which `one` holds already.
    cached = sum(_by_layer(config, prompt))
    decode = sum(one + (cached + new * config.num_hidden_layers) * pairs for new in range(new_tokens - 1))
    return prefill_flops(config, prompt) + decode


def _pair_flops(config: PreTrainedConfig) -> int:
    """Return the operations of one token's attention to one other, over all layers."""
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(4 * heads * head * config.num_hidden_layers)


#: Towers whose feed-forward network is gated, with three matrices.
_GATED_TOWERS = frozenset({"qwen2_5_vl", "qwen2_5_vl_vision", "pixtral"})


def tower_flops(config: PreTrainedConfig, patches: int) -> int:
    """Return the floating-point operations of a vision transformer, counted as `prefill_flops`.

    All its layers count, with what turns pixels into patches and without the projector.

    Parameters
    ----------
    config : PreTrainedConfig
        The vision model's configuration.
    patches : int
        Of one tile, class token included.
    """
    layers = getattr(config, "num_hidden_layers", None) or config.depth
    width, inner, side = config.hidden_size, config.intermediate_size, config.patch_size
    matrices = 3 if config.model_type in _GATED_TOWERS else 2
    window = getattr(config, "window_size", None)
    whole = layers if window is None else len(config.fullatt_block_indexes)
    # In a layer with windows, a patch attends to those of its own window.
    seen = 0 if window is None else min(patches, (window // side) ** 2)
    attention = 2 * patches * width * (whole * patches + (layers - whole) * seen)
    pixels = 3 * side * side * getattr(config, "temporal_patch_size", 1)
    return int(2 * (patches * (pixels * width + layers * (4 * width**2 + matrices * width * inner)) + attention))


def largest_saving(
    config: PreTrainedConfig, *, tower: int, visual: int, kept: int, text: int, new_tokens: int, balance: float
) -> float:
    """Return the share of a request's time that pruning can save at most: if choosing tokens cost nothing.

    Reading pixels and prompt is taken to be bound by arithmetic; writing to be bound by memory, every new token but the
    first reading all weights of the language model and the cache once, in two bytes a number. Both at full speed, one
    request at a time.

    Parameters
    ----------
    config : PreTrainedConfig
        The text model's configuration.
    tower : int
        Floating-point operations of the vision tower; see `tower_flops`.
    visual, kept : int
        Visual tokens, and those that stay.
    text : int
        Tokens of text in the prompt.
    new_tokens : int
        Length of the answer.
    balance : float
        Floating-point operations that the machine does in the time of moving one byte.
    """

    def time(tokens: int) -> float:
        prompt = text + tokens
        cached = sum(range(prompt + 1, prompt + new_tokens)) * kv_cache_bytes(config, 1, torch.bfloat16)
        weights = (prefill_flops(config, 1) - _pair_flops(config)) * (new_tokens - 1)
        return tower + prefill_flops(config, prompt) + balance * (weights + cached)

    return 1 - time(kept) / time(visual)


def kv_cache_bytes(config: PreTrainedConfig, tokens: Lengths, dtype: torch.dtype) -> int:
    """Return the bytes that the keys and values of `tokens` tokens take in the cache, over all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * heads * head * sum(_by_layer(config, tokens)) * dtype.itemsize
