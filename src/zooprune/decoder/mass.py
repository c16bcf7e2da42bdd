"""Let tokens count several times in the attention of a language model.

A token that counts m times has log m added to the score of its key, in every layer and head, so that the softmax is
that of m equal keys. Hooks on the model's own modules do it for the length of a session; nothing is patched, and calls
without a mass pass as if no hook were there. Knows attention modules, masks and caches; no image, no method, no prompt.

Source: proportional attention of "Token Merging: Your ViT But Faster", arXiv 2210.09461, Section 3.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from zooprune.cache_names import CACHE, cache_of
from zooprune.continuing import BY_HAND, allow_adding, remember

#: Layers whose attention is a softmax over keys. Others have no key that could count twice.
_WEIGHABLE = {"full_attention", "sliding_attention", "chunked_attention"}
#: Attention functions that add a mask to the scores.
_MASKED = ("sdpa", "eager")
#: Columns that queries and keys get for a flash kernel: two are used, and kernels want widths in steps of eight.
_COLUMNS = 8
#: The widest heads of a flash kernel.
_WIDEST = 256
#: How many tokens further than needed a bias reaches, so that it is not made anew for every token.
_AHEAD = 256


class Mass:
    """How often each token of a batch counts.

    Parameters
    ----------
    mass : Tensor, (B, L)
        Tokens that come later count once.
    """

    def __init__(self, mass: Tensor) -> None:
        self._logs = mass.float().log()
        self._made: dict[Any, Tensor] = {}

    def bias(self, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return what to add to the scores of `length` keys, (rows, 1, 1, length): every prompt has n rows."""
        key = rows, device, dtype
        made = self._made.get(key)
        if made is None or made.shape[-1] < length:
            logs = F.pad(self._logs, (0, max(0, length + _AHEAD - self._logs.shape[1])))
            made = logs.repeat_interleave(rows // len(logs), dim=0)[:, None, None].to(device, dtype)
            self._made[key] = made
        return made[..., :length]


class WeighedOutputs(dict[str, Any]):
    """Encoded images whose tokens count several times, for the model's `mm_encoder_outputs`; for open sessions alone.

    Parameters
    ----------
    outputs : mapping
    mass : Mass
    """

    def __init__(self, outputs: Mapping[str, Any], mass: Mass) -> None:
        super().__init__(outputs)
        self.mass = mass

    def _refuse(self, *args: Any) -> Any:
        raise ValueError(
            "these visual tokens stand in for dropped ones, which works in an open session only; "
            "call the model inside `with prune(...)`"
        )

    __getitem__ = get = _refuse


#: With the language model that reads it; others may be called meanwhile, by a logits processor for instance.
_of_generate: ContextVar[tuple[nn.Module, Mass] | None] = ContextVar("zooprune_mass", default=None)
_by_hand: ContextVar[Mass | None] = ContextVar("zooprune_mass_by_hand", default=None)
#: What the tokens in caches count, of prompts that were prefilled by hand.
_in_cache: WeakKeyDictionary[Any, Mass] = WeakKeyDictionary()


@contextmanager
def counting(model: PreTrainedModel, mass: Tensor | None) -> Iterator[None]:
    """Let the first tokens of all prompts of a weighed model count as often as `mass` says, (B, L)."""
    decoder: Any = model.get_decoder()
    token = _of_generate.set(None if mass is None else (decoder, Mass(mass)))
    try:
        yield
    finally:
        _of_generate.reset(token)


class Weighing:
    """The hooks that let tokens of a model count several times.

    Parameters
    ----------
    model : PreTrainedModel
        Its language model must be made of softmax attention alone.

    Raises
    ------
    ValueError
        If that is not so, or its attention function takes no mass.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder, attentions = _attentions(model)
        self._handles = [
            model.register_forward_pre_hook(_enter_model, with_kwargs=True),
            model.register_forward_hook(_leave_model, always_call=True),
            decoder.register_forward_pre_hook(_enter_decoder, with_kwargs=True),
            *(module.register_forward_pre_hook(_weigh, with_kwargs=True) for module in attentions),
        ]
        self._configs: list[tuple[nn.Module, Any]] = []
        for module in attentions:
            config: Any = module.config
            if "flash" in config._attn_implementation:
                self._configs.append((module, config))
                changed = copy.copy(config)
                changed._attn_implementation_internal = _with_columns(config._attn_implementation)
                module.config = changed

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        for module, config in self._configs:
            module.config = config


def _attentions(model: PreTrainedModel) -> tuple[nn.Module, list[nn.Module]]:
    """Return the language model and its attention modules, or say why they take no mass."""
    kind, config = type(model).__name__, model.config.get_text_config()
    decoder: Any = model.get_decoder()
    attentions: list[Any] = [
        module
        for module in decoder.modules()
        if type(module).__name__.endswith("Attention") and hasattr(module, "layer_idx") and hasattr(module, "config")
    ]
    other = sorted(set(getattr(config, "layer_types", None) or ()) - _WEIGHABLE)
    needed = {"attention_mask", CACHE}
    # All layers are usually of one class, and a signature takes a tenth of a millisecond.
    usual = all(needed <= {*inspect.signature(one.forward).parameters} for one in {type(one) for one in attentions})
    if other or not usual or len(attentions) != len(getattr(decoder, "layers", ())):
        has = f"{', '.join(other).replace('_', ' ')} layers" if other else "layers without the usual attention"
        raise ValueError(
            f'the language model of {kind} has {has}, where no token can count several times; use dropped="mean"'
        )
    for module in attentions:
        name = module.config._attn_implementation
        if "flash" in name:
            width = getattr(module, "head_dim", 0)
            capped = getattr(config, "attn_logit_softcapping", None)
            if width + _COLUMNS <= _WIDEST and capped is None:
                continue
        elif name in (*_MASKED, "flex_attention"):
            continue
        raise ValueError(_no_mass(name))
    return decoder, attentions


def _no_mass(name: str) -> str:
    return (
        f"tokens cannot count several times with attn_implementation={name!r} here; "
        'call model.set_attn_implementation("sdpa") first, or use dropped="mean"'
    )


def _enter_model(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Find out what counts in a forward pass that the caller runs by hand."""
    outputs, cache = kwargs.get("mm_encoder_outputs"), cache_of(kwargs)
    if isinstance(outputs, WeighedOutputs):
        _by_hand.set(outputs.mass)
        return args, kwargs | {"mm_encoder_outputs": dict(outputs.items())}
    if cache is not None and cache in _in_cache:
        _by_hand.set(_in_cache[cache])
        allow_adding(True)
    return None


def _leave_model(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
    mass = _by_hand.get()
    if mass is None:
        return
    _by_hand.set(None)
    allow_adding(False)
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    for value in values:
        if isinstance(value, Cache):
            _in_cache[value] = mass
            remember(value, BY_HAND)


def _enter_decoder(
    _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    reader, mass = _of_generate.get() or (_module, _by_hand.get())
    if reader is not _module:
        return None
    # Layers pass on what they do not know; so it is there as well when checkpoints run a layer again.
    return None if mass is None else (args, kwargs | {"position_bias": mass})


def _weigh(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Put into words that a layer's own attention function understands how often its keys count."""
    mass = kwargs.get("position_bias")
    if not isinstance(mass, Mass):
        return None
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    cache, (rows, new) = cache_of(kwargs), hidden.shape[:2]
    # A layer with a sliding window sees the last keys only.
    length, first = (new, 0) if cache is None else cache.get_mask_sizes(new, module.layer_idx)
    name = module.config._attn_implementation
    dtype = torch.float32 if "flash" in name else hidden.dtype
    bias = mass.bias(rows, first + length, hidden.device, dtype)[..., first:]
    if name in _MASKED:
        kwargs = {key: value for key, value in kwargs.items() if key != "position_bias"}
        return args, kwargs | {"attention_mask": _added(bias, kwargs, module, new)}
    if name == "flex_attention":
        bias = bias.expand(-1, module.config.num_attention_heads, new, -1)
    elif not name.endswith(_SUFFIX):
        raise ValueError(_no_mass(name))
    return args, kwargs | {"position_bias": bias}


def _added(bias: Tensor, kwargs: Mapping[str, Any], module: Any, new: int) -> Tensor:
    """Return a mask with a bias in it."""
    mask: Tensor | None = kwargs.get("attention_mask")
    if mask is None:
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        if new == 1 or not causal:
            return bias
        mask = torch.ones(new, bias.shape[-1], dtype=torch.bool, device=bias.device).tril()
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(bias.dtype).min)
    return mask + bias


_SUFFIX = "|zooprune-mass"


def _with_columns(implementation: str) -> str:
    """Return the name of a flash attention function that takes a bias, which stays registered from its first use on.

    Flash kernels take no bias, so it comes with the keys: a column of ones beside the queries and log m, divided by the
    scale, beside the keys. Half precision holds that in two columns, the rounded value and what rounding left.
    """
    # The name holds the old one, from which models tell that masks come in the form of a flash kernel.
    name = implementation if implementation.endswith(_SUFFIX) else implementation + _SUFFIX
    if name in ALL_ATTENTION_FUNCTIONS:
        return name

    def weighed(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        function: Any = ALL_ATTENTION_FUNCTIONS[implementation]
        bias = kwargs.pop("position_bias", None)
        if bias is None:
            return function(module, query, key, value, attention_mask, **kwargs)
        scaling = float(kwargs.pop("scaling", None) or query.shape[-1] ** -0.5)
        logs = (bias / scaling).transpose(2, 3).expand(-1, key.shape[1], -1, -1)
        rounded = logs.to(key.dtype)
        columns = torch.cat([rounded, (logs - rounded).to(key.dtype)], dim=-1)
        key = F.pad(torch.cat([key, columns], dim=-1), (0, _COLUMNS - 2))
        query = F.pad(F.pad(query, (0, 2), value=1.0), (0, _COLUMNS - 2))
        output, weights = function(
            module, query, key, F.pad(value, (0, _COLUMNS)), attention_mask, scaling=scaling, **kwargs
        )
        return output[..., : value.shape[-1]], weights

    ALL_ATTENTION_FUNCTIONS.register(name, weighed)
    return name
