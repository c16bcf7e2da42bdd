"""Ask a model a question twice, with all visual tokens and with the kept ones, and measure the cost of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from zooprune.answering import answer, generate
from zooprune.costs import kv_cache_bytes, prefill_flops
from zooprune.generation import Session
from zooprune.plan import Plan
from zooprune.policy import Policy
from zooprune.prompting import build_inputs, seen_images
from zooprune.pruners import UNPRUNED, Pruner, get_pruner
from zooprune.reports import ImageReport, lengths
from zooprune.sensitivity.weight_cache import held


@dataclass(frozen=True)
class Answer:
    """An answer and its cost.

    Parameters
    ----------
    text : str
    visual_tokens, prompt_tokens : int
        The number of tokens that the language model read.
    prefill_flops, kv_cache_bytes : int
        The cost of the whole prompt; see `zooprune.costs`.
    seconds : dict of str to float
        Per stage: encode, score, select, assign, prefill, decode.
    images : tuple of ImageReport
        The kept tokens and their places. There can be more reports than images, if a model cuts images into tiles.
    """

    text: str
    visual_tokens: int
    prompt_tokens: int
    prefill_flops: int
    kv_cache_bytes: int
    seconds: dict[str, float]
    images: tuple[ImageReport, ...]

    @property
    def total(self) -> float:
        """The seconds of all stages."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Comparison:
    """The same question with and without pruning."""

    full: Answer
    pruned: Answer
    #: The images as the model saw them: resized and cropped, unless they were cut into tiles or patches.
    seen: tuple[Image.Image, ...]

    @property
    def changed(self) -> bool:
        """Whether pruning changed the answer."""
        return self.full.text != self.pruned.text


def ask(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    question: str,
    pruner: Pruner | Plan,
    policy: Policy = Policy(),  # noqa: B008, it is frozen
    *,
    max_new_tokens: int = 64,
    warm: bool = False,
) -> Comparison:
    """Answer a question about one image or several, with all visual tokens and with those that `pruner` keeps.

    Parameters
    ----------
    model, processor
        A supported vision-language model and its processor.
    images : sequence of PIL.Image.Image
        RGB. They are shown together, in one prompt.
    question : str
    pruner : Pruner or Plan
    policy : Policy
        Ignored with a plan, which has a policy of its own.
    max_new_tokens : int
        Length of the answers at most.
    warm : bool
        Whether the model was asked before. If not, it is asked once without being measured.

    Returns
    -------
    Comparison
    """
    inputs = build_inputs(processor, [images], [question]).to(model.device, model.dtype)
    method, policy = (pruner.pruner(), pruner.policy) if isinstance(pruner, Plan) else (pruner, policy)
    with held(model):
        if not warm:
            warm_up(model, processor, inputs, method, policy)
        return Comparison(
            answer_and_cost(model, processor, inputs, get_pruner(UNPRUNED), policy, max_new_tokens=max_new_tokens),
            answer_and_cost(model, processor, inputs, method, policy, max_new_tokens=max_new_tokens),
            tuple(seen_images(processor, inputs, images)),
        )


def warm_up(model: Any, processor: Any, inputs: Any, pruner: Pruner, policy: Policy) -> None:
    """Answer with one token: the first call allocates memory, which is not part of the method's cost."""
    with Session(model, pruner, policy):
        generate(model, processor, inputs, max_new_tokens=1)


def answer_and_cost(
    model: Any, processor: Any, inputs: Any, pruner: Pruner, policy: Policy, *, max_new_tokens: int
) -> Answer:
    """Answer a question with a method, and measure the cost.

    Parameters
    ----------
    model, processor
    inputs : mapping
        From `zooprune.prompting.build_inputs`, on the model's device.
    pruner : Pruner
    policy : Policy
    max_new_tokens : int
        Length of the answer at most.
    """
    answered = answer(model, processor, inputs, pruner, policy, max_new_tokens=max_new_tokens)
    report, config = answered.report, model.config.get_text_config()
    read = lengths(report.images, report.pruned_length)
    return Answer(
        answered.texts[0],
        round(report.average),
        report.pruned_length,
        prefill_flops(config, read),
        kv_cache_bytes(config, read, model.dtype),
        report.seconds,
        report.images,
    )
