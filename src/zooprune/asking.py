"""Ask a model one question twice, with all visual tokens and with the kept ones, and note what each cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from zooprune.costs import kv_cache_bytes, prefill_flops
from zooprune.generation import prune
from zooprune.plan import Plan
from zooprune.prompting import build_inputs, seen_images
from zooprune.pruners import UNPRUNED, Pruner, get_pruner
from zooprune.reports import ImageReport, Report


@dataclass(frozen=True)
class Answer:
    """One answer and its cost.

    Parameters
    ----------
    text : str
    visual_tokens, prompt_tokens : int
        What the language model read.
    prefill_flops, kv_cache_bytes : int
        Of the whole prompt; see `zooprune.profiling`.
    seconds : dict of str to float
        Per stage: encode, score, select, prefill, decode.
    images : tuple of ImageReport
        Which tokens stayed, and where they lie; more than one where a model reads an image as several.
    """

    text: str
    visual_tokens: int
    prompt_tokens: int
    prefill_flops: int
    kv_cache_bytes: int
    seconds: dict[str, float]
    images: tuple[ImageReport, ...]


@dataclass(frozen=True)
class Comparison:
    """The same question with and without pruning."""

    full: Answer
    pruned: Answer
    #: The image as the model saw it: resized and cropped, unless it was cut into tiles or patches.
    seen: Image.Image

    @property
    def changed(self) -> bool:
        """Whether pruning changed the answer."""
        return self.full.text != self.pruned.text


def ask(
    model: Any,
    processor: Any,
    image: Image.Image,
    question: str,
    pruner: Pruner | Plan,
    *,
    max_new_tokens: int = 64,
) -> Comparison:
    """Answer a question about an image with all visual tokens and with those `pruner` keeps.

    Parameters
    ----------
    model, processor
        A supported vision-language model and what prepares its inputs.
    image : PIL.Image.Image
        RGB.
    question : str
    pruner : Pruner or Plan
    max_new_tokens : int
        Length of the answers at most.

    Returns
    -------
    Comparison
    """
    inputs = build_inputs(processor, [[image]], [question]).to(model.device, model.dtype)
    everything = get_pruner(UNPRUNED)
    # The first call pays for allocations that are none of the method's cost.
    with prune(model, pruner):
        model.generate(**inputs, max_new_tokens=1)
    return Comparison(
        _answer(model, processor, inputs, everything, max_new_tokens),
        _answer(model, processor, inputs, pruner, max_new_tokens),
        seen_images(processor, inputs["pixel_values"], [image])[0],
    )


def _answer(model: Any, processor: Any, inputs: Any, pruner: Pruner | Plan, max_new_tokens: int) -> Answer:
    with torch.no_grad(), prune(model, pruner) as session:
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    report: Report = session.reports[-1]
    text = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    config = model.config.get_text_config()
    return Answer(
        text,
        report.kept,
        report.pruned_length,
        prefill_flops(config, report.pruned_length),
        kv_cache_bytes(config, report.pruned_length, model.dtype),
        report.seconds,
        report.images,
    )
