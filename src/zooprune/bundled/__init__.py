"""The small vision-language model that ships with the package, so that everything runs without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

_FOLDER = Path(__file__).parent
#: Where the checkpoint lies that `load_bundled` loads.
BUNDLED_FOLDER = _FOLDER / "model"


def load_bundled() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the bundled model.

    It is transformers' own LLaVA in small: a CLIP-style tower that turns 336 x 336 pixels into 576 visual tokens, a
    two-layer GELU projector and a Llama decoder. It answers nine kinds of questions about scenes like those of
    `zooprune.bundled.benchmark`, one kind about two of them at once, and nothing else.

    Returns
    -------
    model : LlavaForConditionalGeneration
        In evaluation mode, float32, on the CPU. The weights are stored as bfloat16.
    processor : LlavaProcessor
        Image preparation, tokenizer and chat template.
    """
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model = LlavaForConditionalGeneration.from_pretrained(
        BUNDLED_FOLDER, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    return model.eval(), LlavaProcessor.from_pretrained(BUNDLED_FOLDER, local_files_only=True)


def demo_scene() -> tuple[Image.Image, str, str]:
    """Return a held-out scene with a question and its right answer.

    Returns
    -------
    image : PIL.Image.Image
        RGB, 336 x 336.
    question, answer : str
    """
    caption = json.loads((_FOLDER / "assets" / "demo.json").read_text())
    with Image.open(_FOLDER / "assets" / "demo.png") as image:
        return image.convert("RGB"), caption["question"], caption["answer"]
