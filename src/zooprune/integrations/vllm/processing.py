"""How many placeholders an image gets, worked out before anything is encoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement

from zooprune.integrations.vllm.configuration import KEY, Pruning, split_request

#: What rides along with every image: how many rows its placeholders have room for, the ids of the question if a method
#: reads it, and the number of the image and the label's bytes if the request brings one.
ROWS, QUESTION, LABEL = "zooprune_rows", "zooprune_question", "zooprune_label"


@dataclass(frozen=True)
class Ask:
    """What is asked for one image, as it comes to the encoder.

    Parameters
    ----------
    keep : int
        How many placeholders it has.
    question : Tensor of int64, optional
    label : Tensor of int64, optional
        The number of the image in its request, and the bytes of the request's label.
    """

    keep: int
    question: Tensor | None = None
    label: Tensor | None = None


def taken_asks(kwargs: dict[str, Any]) -> list[Ask]:
    """Take what is ours out of the arguments of vLLM's encoder, one for each image."""
    keeps = [int(keep) for keep in kwargs.pop(ROWS, ())]
    questions, labels = (_taken(kwargs, name, len(keeps)) for name in (QUESTION, LABEL))
    return [Ask(*each) for each in zip(keeps, questions, labels, strict=True)]


def _taken(kwargs: dict[str, Any], name: str, count: int) -> Sequence[Tensor | None]:
    """Take a field out, which either all images of a batch have or none: vLLM makes batches of equal fields."""
    values: Sequence[Tensor] | None = kwargs.pop(name, None)
    return [None] * count if values is None else values


class PrunedInfo:
    """Beside a processing info of vLLM, which comes after it among the bases."""

    get_hf_config: Callable[[], Any]

    @cached_property
    def pruning(self) -> Pruning:
        """What the server is asked to prune; `zooprune.integrations.vllm.registration` wrote it there."""
        return Pruning.read(getattr(self.get_hf_config(), KEY))

    @property
    def model_id(self) -> str:
        """The model and how it is pruned: vLLM hashes it into every key under which something of an image is cached."""
        return f"{super().model_id} {self.pruning.key}"  # type: ignore[misc]

    def image_totals(self, processed: Mapping[str, Any]) -> list[int]:
        """Return how many rows each of the processed images has before pruning, separators included."""
        raise NotImplementedError

    def get_max_image_tokens(self) -> int:
        """Return the rows of the largest image; the profiling of memory shrinks with the budget."""
        return self.pruning.rows(super().get_max_image_tokens())  # type: ignore[misc]


class PrunedProcessor:
    """Beside a multi-modal processor of vLLM, which comes after it among the bases."""

    info: Any

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Return vLLM's inputs for profiling, with a question where the method wants one."""
        inputs = super().get_dummy_inputs(*args, **kwargs)  # type: ignore[misc]
        if self.info.pruning.reads_question:
            inputs.hf_processor_mm_kwargs = {KEY: {"question": "What is it?"}}
        return inputs

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        asked, rest = split_request(hf_kwargs)
        self.info.pruning.check(asked)
        processed = super()._apply_hf_processor_main(mm_items, rest)  # type: ignore[misc]
        totals = self.info.image_totals(processed)
        if totals:
            processed[ROWS] = torch.tensor([self.info.pruning.rows(total, asked.keep) for total in totals])
            if asked.question is not None:
                ids = self.info.get_tokenizer()(asked.question, add_special_tokens=False)["input_ids"]
                processed[QUESTION] = [torch.tensor(ids, dtype=torch.int64)] * len(totals)
            if asked.label is not None:
                processed[LABEL] = [torch.tensor([number, *asked.label.encode()]) for number in range(len(totals))]
        return processed

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        _, rest = split_request(hf_processor_mm_kwargs)
        fields = super()._get_mm_fields_config(hf_inputs, rest)  # type: ignore[misc]
        return {
            **fields,
            **{name: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for name in (ROWS, QUESTION, LABEL)},
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        _, rest = split_request(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, rest, out_mm_kwargs)  # type: ignore[misc]
        return [_shortened(update, out_mm_kwargs) if update.modality == "image" else update for update in updates]


def _shortened(update: PromptReplacement, out_mm_kwargs: Any) -> PromptReplacement:
    """Return a replacement with as many placeholders as the image has rows left."""
    whole = update.replacement

    def replacement(item: int) -> list[int]:
        rows = int(out_mm_kwargs["image"][item][ROWS].data)
        placeholders: list[int] = whole(item)
        if not 0 < rows <= len(placeholders) or len(set(placeholders)) != 1:
            raise ValueError(f"image {item} has {len(placeholders)} placeholders, of which {rows} cannot stay")
        return placeholders[:rows]

    return dataclasses.replace(update, replacement=replacement)
