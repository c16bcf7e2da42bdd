"""The shapes of known models, with random weights: speed depends on the shape and not on the values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from zooprune.projectors import NormedMLP

#: CLIP ViT-L/14 at 336 pixels, as in LLaVA-1.5 and LLaVA-NeXT.
_CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
_VICUNA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32064,
}  # fmt: skip
_VICUNA_13B = _VICUNA_7B | {
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
}  # fmt: skip
_QWEN25_7B = {
    "model_type": "qwen2_5_vl_text", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip
_QWEN25_TOWER = {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "num_heads": 16, "out_hidden_size": 3584}
_SMALL = {
    "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12,
    "num_attention_heads": 16, "vocab_size": 8192,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A model as far as speed is concerned.

    Parameters
    ----------
    model_type : str
        As transformers names it.
    vision, text : mapping
        Configurations of the tower and of the language model.
    tokens : int
        Visual tokens of the one image that is asked about.
    budgets : tuple of int or float
        What is kept, as the method's paper has it for this model.
    """

    model_type: str
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    tokens: int
    budgets: tuple[int | float, ...] = field(default=(192, 128, 64))

    def config(self) -> PreTrainedConfig:
        """Return the model's configuration."""
        special = {"image_token_id": 5} | ({"image_token_index": 5} if self.model_type.startswith("llava") else {})
        return AutoConfig.for_model(
            self.model_type, vision_config=dict(self.vision), text_config=dict(self.text), **special
        )

    def model(self, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> PreTrainedModel:
        """Return the model with random weights; those of the largest shapes take 14 GiB in bfloat16."""
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(self.config(), dtype=dtype).eval()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model

    def inputs(
        self, text: int = 55, dtype: torch.dtype = torch.bfloat16, device: str = "cpu", batch: int = 1
    ) -> dict[str, Tensor]:
        """Return prompts with one image each, and as many tokens of text as in the usual prompt of two papers."""
        ids = torch.cat([torch.full((35,), 9), torch.full((self.slots,), 5), torch.full((text - 35,), 9)])[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | self._pixels(dtype)
        return {name: torch.cat([value] * batch).to(device) for name, value in inputs.items()}

    @property
    def slots(self) -> int:
        """Placeholders in the prompt, newlines included."""
        return self.tokens + (48 if self.model_type == "llava_next" else 0)

    def _pixels(self, dtype: torch.dtype) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        if self.model_type == "llava_next":
            # A square image: the small view and four tiles, all of whose patches show something.
            return {"pixel_values": noise(1, 5, 3, 336, 336), "image_sizes": torch.tensor([[672, 672]])}
        if self.model_type == "llava":
            return {"pixel_values": noise(1, 3, self.vision["image_size"], self.vision["image_size"])}
        side = 2 * round(self.tokens**0.5)
        kinds = torch.zeros(1, self.slots + 55, dtype=torch.int64)
        kinds[:, 35 : 35 + self.slots] = 1
        return {
            "pixel_values": noise(side * side, 3 * 2 * 14 * 14),
            "image_grid_thw": torch.tensor([[1, side, side]]),
            "mm_token_type_ids": kinds,
        }

    def projector(self) -> nn.Module:
        """Return a projector of this shape, float32, random weights."""
        torch.manual_seed(0)
        out = self.text["hidden_size"]
        if self.model_type == "qwen2_5_vl":
            width = self.vision["hidden_size"]
            first, second = nn.Linear(4 * width, 4 * width), nn.Linear(4 * width, out)
            projector: nn.Module = NormedMLP(nn.RMSNorm(width, eps=1e-6), first, nn.GELU(), second, 4)
        else:
            projector = nn.Sequential(nn.Linear(self.d_vision, out), nn.GELU(), nn.Linear(out, out))
        return projector.requires_grad_(False)

    @property
    def d_vision(self) -> int:
        """Width of what the projector reads."""
        return int(self.vision["hidden_size"]) * (4 if self.model_type == "qwen2_5_vl" else 1)


#: By name. The first one takes a minute on two CPU cores, the others need a GPU or patience.
SHAPES = {
    "small": Shape("llava", _CLIP | {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6,
                                     "num_attention_heads": 8}, _SMALL, 576),
    "llava-1.5-7b": Shape("llava", _CLIP, _VICUNA_7B, 576),
    "llava-1.5-13b": Shape("llava", _CLIP, _VICUNA_13B, 576),
    "llava-next-7b": Shape("llava_next", _CLIP, _VICUNA_7B, 2880, (640, 320, 160)),
    "qwen2.5-vl-7b": Shape("qwen2_5_vl", _QWEN25_TOWER, _QWEN25_7B, 1024, (0.2, 0.1)),
}  # fmt: skip


def shape_of(name: str) -> Shape:
    """Return a shape by name, or a ValueError that lists the names."""
    if name not in SHAPES:
        raise ValueError(f"no shape {name!r}; choose one of {', '.join(SHAPES)}")
    return SHAPES[name]
