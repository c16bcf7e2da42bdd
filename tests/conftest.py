"""Tiny models built from configurations; nothing is ever downloaded."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.utils import logging as transformers_logging

from zooprune import list_pruners, load_bundled
from zooprune.cache_names import CACHE
from zooprune.pruners import UNPRUNED, Pruner
from zooprune.tokens import Budget, Selection, VisualTokens

IMAGE, PAD, BOS = 3, 0, 1
#: All methods that leave something out before the language model.
METHODS = [name for name in list_pruners("before the language model") if name != UNPRUNED]
GRID = 6


class Deprecations(logging.Handler):
    """Notes what transformers logs about things that are going away."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecat" in record.getMessage().lower():
            self.messages.append(record.getMessage())


# It listens from the start, because each message is logged once only: perhaps while a shared fixture is made.
deprecations = Deprecations()
transformers_logging.get_logger("transformers").addHandler(deprecations)


@pytest.fixture(autouse=True)
def deprecation_is_failure() -> Iterator[None]:
    """Fail a test before or during which transformers logs that something is going away."""
    transformers_logging.set_verbosity_warning()
    yield
    messages, deprecations.messages = deprecations.messages, []
    assert not messages


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, what needs a GPU, a browser, lmms-eval, vLLM or ray where there is none."""
    needs = {"gpu": (torch.cuda.is_available(), "needs a CUDA device")}
    browser = all(map(importlib.util.find_spec, ("gradio", "playwright"))) and shutil.which("chromium")
    needs["app"] = (bool(browser), "needs gradio, playwright and chromium: make test-app")
    needs["harness"] = (importlib.util.find_spec("lmms_eval") is not None, "needs lmms-eval: make test-harness")
    needs["vllm"] = (importlib.util.find_spec("vllm") is not None, "needs vLLM: make test-vllm")
    needs["ray"] = (importlib.util.find_spec("ray") is not None, "needs ray: make test-ray")
    for item in items:
        for marker, (there, reason) in needs.items():
            if not there and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def clip_llama() -> LlavaForConditionalGeneration:
    """LLaVA-1.5 in small: CLIP with a class token, Llama."""
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=14 * GRID,
        patch_size=14, projection_dim=24,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=None,
    )  # fmt: skip
    return _llava(vision, text, strategy="default", layer=-2)


def siglip_qwen2() -> LlavaForConditionalGeneration:
    """LLaVA with other parts: SigLIP without class token, Qwen2 with shared key heads."""
    vision = SiglipVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=14 * GRID,
        patch_size=14, vision_use_head=False,
    )  # fmt: skip
    text = Qwen2Config(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=None,
    )  # fmt: skip
    return _llava(vision, text, strategy="full", layer=-1)


def pixtral_mistral() -> LlavaForConditionalGeneration:
    """LLaVA with images of different sizes."""
    vision = PixtralVisionConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=14 * GRID,
        patch_size=14,
    )  # fmt: skip
    text = MistralConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=None,
    )  # fmt: skip
    return _llava(vision, text, strategy="full", layer=-1)


def _llava(vision, text, strategy: str, layer: int) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_token_index=IMAGE,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layer,
        image_seq_length=GRID * GRID,
    )
    model = LlavaForConditionalGeneration(config).eval()
    # Random weights of the usual scale barely tell images apart; larger ones make every test sharper.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


MODELS = {"clip-llama": clip_llama, "siglip-qwen2": siglip_qwen2}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> LlavaForConditionalGeneration:
    """Each tiny model in turn."""
    return MODELS[request.param]()


@pytest.fixture
def llava() -> LlavaForConditionalGeneration:
    """One tiny model, where the variant does not matter."""
    return clip_llama()


@dataclass(frozen=True)
class Row:
    """A prompt: how many images it has and how much text around them."""

    images: int
    text: int


def make_inputs(*rows: Row, seed: int = 0) -> dict[str, Tensor]:
    """Return left-padded inputs for prompts with different random images."""
    generator = torch.Generator().manual_seed(seed)
    prompts = []
    for row in rows:
        pieces = [torch.tensor([BOS])]
        for _ in range(row.images):
            pieces += [torch.full((GRID * GRID,), IMAGE), torch.randint(5, 60, (2,), generator=generator)]
        prompts.append(torch.cat([*pieces, torch.randint(5, 60, (row.text,), generator=generator)]))
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for number, prompt in enumerate(prompts):
        ids[number, width - len(prompt) :] = prompt
        mask[number, width - len(prompt) :] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    count = sum(row.images for row in rows)
    if count:
        inputs["pixel_values"] = torch.randn(count, 3, 14 * GRID, 14 * GRID, generator=generator)
    return inputs


def cached(output: Any) -> dict[str, Any]:
    """Return the cache that a call gave as an argument of the next call."""
    return {CACHE: output[CACHE]}


def make_processor() -> LlavaProcessor:
    """Return the processor of `clip_llama`, whose words are "w5" to "w59"."""
    words = ["<pad>", "<s>", "<unk>", "<image>", "</s>", *(f"w{number}" for number in range(5, 60))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", eos_token="</s>",
        additional_special_tokens=["<image>"], padding_side="left",
    )  # fmt: skip
    side = 14 * GRID
    images = CLIPImageProcessorPil(size={"height": side, "width": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(
        images, fast, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{% for c in m.content %}"
        "{{ '<image> ' if c.type == 'image' else c.text }}{% endfor %}{% endfor %}",
    )  # fmt: skip


@pytest.fixture
def tokens() -> VisualTokens:
    """Thirty random tokens with every signal, and a two-layer projector."""
    torch.manual_seed(1)
    projector = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 20))
    features = torch.randn(30, 16)
    place = torch.arange(30)
    positions = torch.stack([place * 0, place * 0, place // 6, place % 6], dim=-1)
    signals = {"tower_attention": torch.rand(30, 1), "tower_keys": torch.randn(30, 8)}
    context = {"question": torch.randn(5, 20)}
    signals |= {
        "tower_received": torch.rand(30, 1), "tower_received/0.375": torch.rand(30, 1),
        "tower_joint_attention/-1": torch.rand(30, 1), "tower_joint_keys/-1": torch.randn(30, 12),
        "tower_context@39.26": torch.rand(30, 1), "tower_attention/-1": torch.rand(30, 1),
        "tower_received/0.96": torch.rand(30, 1), "tower_received/0.23": torch.rand(30, 1),
    }  # fmt: skip
    return VisualTokens(features, projector(features).detach(), projector, positions, signals, context)


def pick(pruner: Pruner, tokens: VisualTokens) -> Selection:
    """Return what a method keeps of an image by its own budget."""
    return pruner.select(tokens, Budget(pruner.keep).count(len(tokens)))


@pytest.fixture(scope="session")
def bundled():
    """The bundled model and its processor; tests must leave them as they are."""
    return load_bundled()
