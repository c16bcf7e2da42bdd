"""lmms-eval's `--model zooprune`.

Source: the interface is `lmms_eval.api.model.lmms` as of lmms-eval 0.7.3, in the form that is given chat messages.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from loguru import logger
from tqdm import tqdm
from transformers import GenerationConfig

from zooprune.answering import Answerer

#: Options that mean something only while drawing.
_SAMPLING = ("top_p", "top_k", "min_p", "typical_p")


class ZooPruneLmm(lmms):
    """Any model of transformers, pruned by any method, as lmms-eval wants it.

    Arguments come from ``--model_args``, and ``batch_size`` and ``device`` from the options of the same name.

    Parameters
    ----------
    pretrained : str
        "bundled", a folder, or an id on the Hugging Face hub.
    batch_size : int or str
        Questions answered together.
    system_prompt : str, optional
        What the conversation starts with, or a file that holds it.
    device : str
        "auto", "cpu", "cuda:1", ...; every process of `accelerate launch` takes its own.
    **options
        `method`, `keep`, `positions`, `scope`, `newlines`, `dropped`, `dtype` and fields of the method, all as in
        `zooprune.answering.Answerer`.

    Raises
    ------
    ValueError, TypeError
        If an argument is not valid.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "bundled",
        batch_size: int | str = 1,
        system_prompt: str | None = None,
        device: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size} is not supported; give a number of questions")
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            device = str(self.accelerator.device)
        self._system_prompt = None if system_prompt is None else self._resolve_system_prompt(system_prompt)
        self._answerer = Answerer(pretrained, device=device, **options)
        self.device = self._answerer.model.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer requests, those with the same options together, and note how many visual tokens were kept."""
        results: list[GenerationResult] = [GenerationResult("")] * len(requests)
        seconds, new_tokens, visual, kept = 0.0, 0, 0, 0
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="zooprune")
        for batch in self._batches(requests):
            until, options = _options(requests[batch[0]].args[2])
            conversations = [self._conversation(requests[number]) for number in batch]
            began = time.perf_counter()
            replies = self._answerer.answer(conversations, until=until, **options)
            seconds += time.perf_counter() - began
            for number, text, length in zip(batch, replies.texts, replies.new_tokens, strict=True):
                results[number] = GenerationResult(text, TokenCounts(output_tokens=length))
            new_tokens += sum(replies.new_tokens)
            visual, kept = visual + replies.visual_tokens, kept + replies.kept_tokens
            bar.update(len(batch))
        bar.close()
        figures: dict[str, float] = {"total_requests": len(requests)}
        if visual:
            figures |= {"visual_tokens": visual / len(requests), "kept_visual_tokens": kept / len(requests)}
        log_metrics(seconds, new_tokens, new_tokens / max(seconds, 1e-9), figures)
        return results

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refuse."""
        raise NotImplementedError("zooprune answers tasks that generate; choose a task with output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refuse."""
        raise NotImplementedError("zooprune answers tasks of one round; choose a task with output_type generate_until")

    def clean(self) -> None:
        """Let go of the model, as lmms-eval asks once all is answered."""
        self._answerer.close()
        del self._answerer
        super().clean()

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[int]]:
        """Yield numbers of requests that can be answered together."""
        alike = defaultdict(list)
        for number, request in enumerate(requests):
            alike[json.dumps(request.args[2], sort_keys=True)].append(number)
        for numbers in alike.values():
            for start in range(0, len(numbers), self.batch_size):
                yield numbers[start : start + self.batch_size]

    def _conversation(self, request: Instance) -> list[dict[str, Any]]:
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])
        if self._system_prompt is not None:
            messages = self._apply_system_prompt(messages, self._system_prompt)
        chat = ChatMessages(messages=messages)
        _, videos, sounds = chat.extract_media()
        if videos or sounds:
            raise ValueError(f"{task} asks about videos or sounds; choose a task about images")
        conversation: list[dict[str, Any]] = chat.to_hf_messages()
        return conversation


@cache
def _warn_of(name: str) -> None:
    """Say once that an option is left out."""
    logger.warning(f"{name} is no option of generate but meant for other adapters, and left out")


def _options(given: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return where replies end, and the options of `generate`."""
    options = {name: value for name, value in given.items() if value is not None}
    until = options.pop("until", [])
    temperature = options.pop("temperature", 1.0 if options.get("do_sample") else 0.0)
    options["do_sample"] = bool(options.get("do_sample", True)) and temperature > 0
    if options["do_sample"]:
        options["temperature"] = temperature
    else:
        options = {name: value for name, value in options.items() if name not in _SAMPLING}
    known = vars(GenerationConfig())
    for name in sorted(set(options) - set(known)):
        del options[name]
        _warn_of(name)
    return [until] if isinstance(until, str) else list(until), options
