"""Call a model's own `generate` with a cut prompt, and hide from the caller that it was cut.

Knows the arguments of `generate` that see or count the prompt. It does not know how the prompt was cut.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.utils import ModelOutput

from zooprune.callbacks import FirstToken, WholeCriterion, WholeProcessor, WholePrompt, WholeStreamer
from zooprune.compaction import Prompt
from zooprune.profiling import Timings
from zooprune.reports import Report


def call(
    model: PreTrainedModel,
    generate: Callable[..., Tensor | ModelOutput],
    kwargs: dict[str, Any],
    ids: Tensor,
    prompt: Prompt,
    timings: Timings,
) -> Tensor | ModelOutput:
    """Generate from the cut prompt, and return the caller's ids in front of the new ones.

    Parameters
    ----------
    model : PreTrainedModel
    generate : callable
        The model's own.
    kwargs : dict
        The caller's arguments, with the cut prompt's ids and mask in place of the whole ones. Changed on the way.
    ids : Tensor of int64, (B, L)
        The whole prompts.
    prompt : Prompt
        The cut ones.
    timings : Timings
        Where prefill and decoding are noted.
    """
    whole = WholePrompt(ids, prompt.input_ids.shape[1])
    config: GenerationConfig | None = kwargs.pop("generation_config", None)
    lowered = _lowered_limits(model, config, kwargs, ids.shape[1], prompt.input_ids.shape[1])
    if config is None:
        kwargs |= lowered
    else:
        config = copy.deepcopy(config)
        for limit, value in lowered.items():
            setattr(config, limit, value)
            kwargs.pop(limit, None)
    if kwargs.get("streamer") is not None:
        kwargs["streamer"] = WholeStreamer(kwargs["streamer"], whole)
    if kwargs.get("logits_processor"):
        processors = [WholeProcessor(processor, whole) for processor in kwargs["logits_processor"]]
        kwargs["logits_processor"] = LogitsProcessorList(processors)
    criteria = [WholeCriterion(criterion, whole) for criterion in kwargs.get("stopping_criteria") or ()]
    clock = FirstToken(ids.device, timings)
    kwargs["stopping_criteria"] = StoppingCriteriaList([*criteria, clock])
    output = generate(generation_config=config, **kwargs)
    clock.finish()
    if isinstance(output, Tensor):
        return whole(output)
    output["sequences"] = whole(output["sequences"])
    return output


def option(model: PreTrainedModel, name: str, kwargs: Mapping[str, Any]) -> int | None:
    """Return an option of `generate` from where it counts most: the call, its configuration, the model's own."""
    sources = (getattr(kwargs.get("generation_config"), name, None), getattr(model.generation_config, name, None))
    return next((value for value in (kwargs.get(name), *sources) if value is not None), None)


def check_copies(model: PreTrainedModel, kwargs: Mapping[str, Any], encoded: Mapping[str, Any], report: Report) -> None:
    """Refuse to copy prompts, as beams do, where transformers could not tell whose rows of features are whose.

    Raises
    ------
    ValueError
        If prompts are to be copied, keep different numbers of tokens, and the model reads them as one tensor.
    """
    copies = [option(model, name, kwargs) or 1 for name in ("num_beams", "num_return_sequences")]
    prompts = {(image.modality, image.row) for image in report.images}
    for modality, output in encoded.items():
        joined = isinstance(output.pooler_output, Tensor) and len(output.pooler_output) == 1
        if max(copies) > 1 and joined and sum(kind == modality for kind, _ in prompts) > 1:
            raise ValueError(
                f"{type(model).__name__} cannot copy prompts that keep different numbers of tokens; "
                "give an int for keep, or one prompt at a time"
            )


def _lowered_limits(
    model: PreTrainedModel, config: GenerationConfig | None, kwargs: Mapping[str, Any], before: int, after: int
) -> dict[str, int]:
    """Lower the limits that count the prompt, so that as many new tokens come as without pruning."""
    given = {**kwargs, "generation_config": config}
    lowered = {}
    for limit, new_tokens in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        value = option(model, limit, given)
        if value is None or option(model, new_tokens, given) is not None:
            continue
        if limit == "max_length" and value <= before:
            raise ValueError(f"max_length={value} leaves no room after a prompt of {before}; give max_new_tokens")
        if before != after:
            lowered[limit] = max(0, value - before + after)
    return lowered
