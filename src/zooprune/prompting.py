"""Prompts from questions and images, with a model's own processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image


def build_inputs(processor: Any, images: Sequence[Sequence[Image.Image]], questions: Sequence[str]) -> Any:
    """Return a model's inputs for a batch of questions.

    Parameters
    ----------
    processor
        Its chat template makes the prompts; one that has none gets LLaVA-1.5's.
    images : sequence of sequences of PIL.Image.Image
        Those of each question, shown before it.
    questions : sequence of str

    Returns
    -------
    BatchFeature
        Padded on the left.

    Raises
    ------
    ValueError
        If the processor refuses a prompt or an image, or a question holds one of its own marks.
    """
    for question in questions:
        check_question(processor, question)
    texts = [_prompt(processor, len(shown), question) for shown, question in zip(images, questions, strict=True)]
    given = [list(shown) for shown in images] if any(images) else None
    try:
        return processor(text=texts, images=given, return_tensors="pt", padding=True, padding_side="left")
    except ValueError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"the model's processor refuses this prompt ({reason}); change the image or the text"
        ) from error


def check_question(processor: Any, question: str) -> None:
    """Refuse a question with a mark that the processor would take for an image or a part of one.

    Raises
    ------
    ValueError
        If there is one.
    """
    own = [value for name, value in vars(processor).items() if name.endswith("_token")]
    tokenizer = getattr(processor, "tokenizer", None)
    own += [getattr(tokenizer, name, None) for name in ("image_token", "video_token", "boi_token", "eoi_token")]
    marks = {mark for mark in own if isinstance(mark, str) and mark}
    for mark in sorted(marks):
        if mark in question:
            raise ValueError(
                f"the question holds {mark!r}, which this model's processor reads as an image or a part of one; "
                "write it in another way"
            )


def _prompt(processor: Any, images: int, question: str) -> str:
    if processor.chat_template is None:
        return "USER: " + "<image>\n" * images + f"{question} ASSISTANT:"
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return text


def seen_images(processor: Any, inputs: Mapping[str, Any], images: Sequence[Image.Image]) -> list[Image.Image]:
    """Undo the processor's normalisation where it made one picture of each image, (images, 3, H, W).

    Images that were padded to the size of the largest are cut out again.
    """
    # Video-LLaVA has the second name.
    pixels = next(inputs[name] for name in ("pixel_values", "pixel_values_images") if name in inputs)
    if pixels.ndim != 4 or len(pixels) != len(images):
        return list(images)
    mean, std = (torch.tensor(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
    colours = pixels.float().cpu() * std.view(3, 1, 1) + mean.view(3, 1, 1)
    bytes_ = (colours * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    sizes = inputs.get("image_sizes")
    shapes = [pixels.shape[-2:]] * len(images) if sizes is None else torch.as_tensor(sizes).tolist()
    return [Image.fromarray(own[:height, :width]) for own, (height, width) in zip(bytes_, shapes, strict=True)]
