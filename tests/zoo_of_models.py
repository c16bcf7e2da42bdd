"""One tiny model of every family, with inputs as its processor would make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

IMAGE, PAD, BOS, VIDEO, VISION_START, VISION_END, NEWLINE, WHOLE = 3, 0, 1, 2, 4, 5, 6, 9
VOCABULARY = 60
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "pad_token_id": PAD,
    "bos_token_id": BOS, "eos_token_id": None, "head_dim": 8,
}  # fmt: skip
TOWER = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {**TOWER, "image_size": 56, "patch_size": 14, "projection_dim": 24, "model_type": "clip_vision_model"}
SIGLIP = {**TOWER, "image_size": 56, "patch_size": 14, "vision_use_head": False, "model_type": "siglip_vision_model"}


def layers(*kinds: str) -> list[str]:
    """Return the kind of each layer of the language model, in turn."""
    return [kinds[number % len(kinds)] for number in range(TEXT["num_hidden_layers"])]


PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


@dataclass
class Prompt:
    """A batch being put together: one list of ids per row, and the pixels of all rows."""

    rows: list[list[int]] = field(default_factory=list)
    pixels: list[Tensor] = field(default_factory=list)
    sizes: list[tuple[int, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """A family's tiny model.

    `image` draws an image of a size given in units of its own, and returns its pixels, what describes its size, and
    the ids that stand for it in the prompt; `inputs` turns all of them into what the model takes.
    """

    name: str
    build: Callable[[], Any]
    image: Callable[[Any, torch.Generator, int], tuple[Tensor, tuple[int, ...], list[int]]]
    inputs: Callable[[list[Tensor], list[tuple[int, ...]], Tensor], dict[str, Any]]
    #: Sizes that make images of different kinds, such as other tiles or aspect ratios.
    kinds: int = 1
    beams: bool = True
    #: A class that not every supported version of transformers has.
    needs: str | None = None

    def model(self) -> Any:
        """Build the model, with weights large enough to tell images apart."""
        if self.needs and not hasattr(transformers, self.needs):
            pytest.skip(f"transformers {transformers.__version__} has no {self.needs}")
        torch.manual_seed(0)
        model = self.build().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
                elif "norm" not in name and parameter.std(correction=0) == 0:
                    parameter.normal_(0, 0.02)
                if not parameter.any():
                    parameter.normal_(0, 0.2)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PAD
        return model

    def make(self, model: Any, rows: list[list[int]], seed: int = 0) -> dict[str, Any]:
        """Return left-padded inputs; a row is a list of image kinds, with text between and after."""
        pixels, sizes, prompts = [], [], []
        for number, row in enumerate(rows):
            generator = torch.Generator().manual_seed(seed + number)
            ids = [BOS]
            for kind in row:
                drawn, size, stands = self.image(model, generator, kind)
                pixels.append(drawn)
                sizes.append(size)
                ids += [*stands, *torch.randint(10, VOCABULARY, (2,), generator=generator).tolist()]
            prompts.append(ids + torch.randint(10, VOCABULARY, (3 + seed + number,), generator=generator).tolist())
        width = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
        inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
        return inputs | (self.inputs(pixels, sizes, ids) if pixels else {})


def _noise(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _stack(pixels: list[Tensor], sizes: list[tuple[int, ...]], ids: Tensor) -> dict[str, Any]:
    return {"pixel_values": torch.stack(pixels)}


def _square(side: int, tokens: int) -> Callable[..., tuple[Tensor, tuple[int, ...], list[int]]]:
    return lambda model, generator, kind: (_noise(generator, 3, side, side), (side, side), [IMAGE] * tokens)


# LLaVA and ViP-LLaVA


def llava() -> Any:
    config = transformers.LlavaConfig(
        vision_config=CLIP, text_config={**TEXT, "model_type": "llama"}, image_token_id=IMAGE,
        vision_feature_select_strategy="default", vision_feature_layer=-2, image_seq_length=16,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config)


def vipllava() -> Any:
    config = transformers.VipLlavaConfig(
        vision_config=CLIP, text_config={**TEXT, "model_type": "llama"}, image_token_id=IMAGE,
        vision_feature_layers=[-2, -1], vision_feature_layer=[-2, -1], image_seq_length=16,
    )  # fmt: skip
    return transformers.VipLlavaForConditionalGeneration(config)


# LLaVA-NeXT, LLaVA-NeXT-Video, LLaVA-OneVision

NEXT_SIZES = ((112, 112), (40, 100), (100, 30), (30, 170), (90, 70))


def _tiled(model: Any, generator: torch.Generator, kind: int) -> tuple[Tensor, tuple[int, ...], list[int]]:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    size = NEXT_SIZES[kind]
    count = image_size_to_num_patches(list(size), PINPOINTS, 56)
    pixels = _noise(generator, count, 3, 56, 56)
    # The model alone knows how many tokens are left after unpadding.
    with torch.no_grad():
        output = model.model.get_image_features(pixels[None], torch.tensor([size]), return_dict=True)
    return pixels, size, [IMAGE] * len(output.pooler_output[0])


def _tiled_inputs(pixels: list[Tensor], sizes: list[tuple[int, ...]], ids: Tensor) -> dict[str, Any]:
    most = max(len(one) for one in pixels)
    padded = [torch.cat([one, one.new_zeros(most - len(one), *one.shape[1:])]) for one in pixels]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(sizes)}


def llava_next() -> Any:
    config = transformers.LlavaNextConfig(
        vision_config=CLIP, text_config={**TEXT, "model_type": "llama"}, image_token_id=IMAGE,
        image_grid_pinpoints=PINPOINTS, vision_feature_layer=-2,
    )  # fmt: skip
    return transformers.LlavaNextForConditionalGeneration(config)


def llava_next_video() -> Any:
    config = transformers.LlavaNextVideoConfig(
        vision_config=CLIP, text_config={**TEXT, "model_type": "llama"}, image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS, vision_feature_layer=-2,
    )  # fmt: skip
    return transformers.LlavaNextVideoForConditionalGeneration(config)


def llava_onevision() -> Any:
    config = transformers.LlavaOnevisionConfig(
        vision_config=SIGLIP, text_config={**TEXT, "model_type": "qwen2"}, image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS, vision_feature_layer=-1, vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )  # fmt: skip
    return transformers.LlavaOnevisionForConditionalGeneration(config)


# Qwen and GLM

GRIDS = ((1, 4, 6), (1, 8, 4), (1, 6, 6))


def _gridded(model: Any, generator: torch.Generator, kind: int) -> tuple[Tensor, tuple[int, ...], list[int]]:
    grid = GRIDS[kind]
    patches = grid[0] * grid[1] * grid[2]
    config = model.config.vision_config
    channels = getattr(config, "in_channels", None) or config.num_channels
    width = channels * getattr(config, "temporal_patch_size", 1) * config.patch_size**2
    return _noise(generator, patches, width), grid, [VISION_START, *[IMAGE] * (patches // 4), VISION_END]


def _gridded_inputs(pixels: list[Tensor], sizes: list[tuple[int, ...]], ids: Tensor) -> dict[str, Any]:
    return {
        "pixel_values": torch.cat(pixels),
        "image_grid_thw": torch.tensor(sizes),
        "mm_token_type_ids": (ids == IMAGE).int(),
    }


QWEN = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def qwen2_vl() -> Any:
    config = transformers.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
        text_config={**TEXT, "rope_parameters": MROPE}, **QWEN,
    )  # fmt: skip
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl() -> Any:
    config = transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4,
            "intermediate_size": 48, "window_size": 16, "fullatt_block_indexes": [1],
        },
        text_config={**TEXT, "rope_parameters": MROPE}, **QWEN,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


QWEN3_TOWER = {
    "depth": 3, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4, "intermediate_size": 48,
    "num_position_embeddings": 64,
}  # fmt: skip


def qwen3_vl() -> Any:
    config = transformers.Qwen3VLConfig(
        vision_config={**QWEN3_TOWER, "deepstack_visual_indexes": [0, 1]},
        text_config={**TEXT, "rope_parameters": {**MROPE, "mrope_interleaved": True}}, **QWEN,
    )  # fmt: skip
    return transformers.Qwen3VLForConditionalGeneration(config)


def qwen3_vl_moe() -> Any:
    config = transformers.Qwen3VLMoeConfig(
        vision_config={**QWEN3_TOWER, "deepstack_visual_indexes": [0, 1]},
        text_config={
            **TEXT, "rope_parameters": {**MROPE, "mrope_interleaved": True}, "num_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        }, **QWEN,
    )  # fmt: skip
    return transformers.Qwen3VLMoeForConditionalGeneration(config)


def qwen3_5() -> Any:
    config = transformers.Qwen3_5Config(
        vision_config=QWEN3_TOWER,
        text_config={
            **TEXT, "head_dim": 16,
            "rope_parameters": {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 0.5},
            "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
            "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        }, **QWEN,
    )  # fmt: skip
    return transformers.Qwen3_5ForConditionalGeneration(config)


def glm4v(kind: str = "Glm4v") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vision_config={
            "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4,
            "intermediate_size": 48, "image_size": 32,
        },
        text_config={**TEXT, "rope_parameters": MROPE},
        image_token_id=IMAGE, video_token_id=VIDEO, image_start_token_id=VISION_START, image_end_token_id=VISION_END,
        video_start_token_id=7, video_end_token_id=8,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def glm46v() -> Any:
    return glm4v("Glm46V")


# Others with a grid of patches, which count positions like text


def exaone() -> Any:
    config = transformers.Exaone4_5_Config(
        vision_config={
            "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 4, "num_key_value_heads": 2,
            "patch_size": 4, "intermediate_size": 48, "window_size": 16, "fullatt_block_indexes": [1],
        },
        text_config={**TEXT, "model_type": "exaone4", "layer_types": layers("full_attention")},
        image_token_id=IMAGE, video_token_id=VIDEO,
    )  # fmt: skip
    return transformers.Exaone4_5_ForConditionalGeneration(config)


def hyperclovax() -> Any:
    config = transformers.HyperCLOVAXVisionV2Config(
        vision_config={
            "model_type": "qwen2_5_vl_vision", "depth": 2, "hidden_size": 32, "out_hidden_size": 24, "num_heads": 2,
            "patch_size": 4, "intermediate_size": 48, "window_size": 16, "fullatt_block_indexes": [1],
        },
        text_config={**TEXT, "model_type": "hyperclovax"}, image_token_id=IMAGE, video_token_id=VIDEO,
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.HyperCLOVAXVisionV2ForConditionalGeneration(config)


def lfm3_vl() -> Any:
    config = transformers.Lfm3VlConfig(
        vision_config={
            **TOWER, "num_key_value_heads": 1, "patch_size": 4, "layer_types": ["conv", "full_attention"],
        },
        text_config={**TEXT, "model_type": "lfm3", "layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
        image_token_id=IMAGE, video_token_id=VIDEO, projector_hidden_size=40, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Lfm3VlForConditionalGeneration(config)


def minimax_m3() -> Any:
    config = transformers.MiniMaxM3VLConfig(
        vision_config={**TOWER, "hidden_size": 32, "patch_size": 4, "image_size": 56},
        text_config={
            **TEXT, "dense_intermediate_size": 48, "shared_intermediate_size": 48, "num_local_experts": 4,
            "num_experts_per_tok": 2, "rotary_dim": 4, "mlp_layer_types": layers("dense", "sparse"),
        },
        image_token_index=IMAGE, video_token_index=VIDEO, projector_hidden_size=40,
    )  # fmt: skip
    return transformers.MiniMaxM3SparseForConditionalGeneration(config)


def glm5_next() -> Any:
    config = transformers.Glm5NextConfig(
        vision_config={
            "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4,
            "intermediate_size": 48, "image_size": 32, "projection_intermediate_size": 40,
        },
        text_config={
            **TEXT, "num_key_value_heads": 4, "layer_types": ["linear_attention", "indexed_attention"],
            "mlp_layer_types": ["dense", "sparse"], "moe_intermediate_size": 16, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "kv_lora_rank": 16, "q_lora_rank": 16, "v_head_dim": 8, "qk_nope_head_dim": 8,
            "linear_head_dim": 8, "linear_num_heads": 2, "index_head_dim": 8, "index_n_heads": 2,
        },
        image_token_id=IMAGE, video_token_id=VIDEO, video_start_token_id=7, video_end_token_id=8,
    )  # fmt: skip
    return transformers.Glm5NextForConditionalGeneration(config)


def videollama3() -> Any:
    config = transformers.VideoLlama3Config(
        vision_config={**TOWER, "hidden_size": 32, "patch_size": 4}, text_config={**TEXT, "model_type": "qwen2"},
        image_token_id=IMAGE, video_token_id=VIDEO,
    )  # fmt: skip
    return transformers.VideoLlama3ForConditionalGeneration(config)


def _grids_alone(pixels: list[Tensor], sizes: list[tuple[int, ...]], ids: Tensor) -> dict[str, Any]:
    return {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(sizes)}


def _merge_sizes(pixels: list[Tensor], sizes: list[tuple[int, ...]], ids: Tensor) -> dict[str, Any]:
    return _grids_alone(pixels, sizes, ids) | {"image_merge_sizes": torch.full((len(sizes),), 2)}


# LFM2-VL

TILES = (((4, 6),), ((4, 4), (4, 4), (2, 4)))


def lfm2_vl(*, norm: bool = True) -> Any:
    config = transformers.Lfm2VlConfig(
        vision_config={
            **TOWER, "patch_size": 4, "num_patches": 16, "vision_use_head": False, "model_type": "siglip2_vision_model",
        },
        text_config={
            **TEXT, "model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False,
        },
        image_token_id=IMAGE, projector_hidden_size=40, projector_use_layernorm=norm, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Lfm2VlForConditionalGeneration(config)


def lfm2_vl_plain() -> Any:
    return lfm2_vl(norm=False)


def _padded_tiles(model: Any, generator: torch.Generator, kind: int) -> tuple[Tensor, tuple[int, ...], list[int]]:
    """Draw tiles of any size, padded to the patches of the largest, with a name before each of several."""
    tiles = TILES[kind]
    pixels = torch.zeros(len(tiles), 24, 3 * 4**2)
    stands = [VISION_START]
    for number, (rows, columns) in enumerate(tiles):
        pixels[number, : rows * columns] = _noise(generator, rows * columns, 3 * 4**2)
        stands += [*[7 + number] * (len(tiles) > 1), *[IMAGE] * (rows * columns // 4)]
    return pixels, tuple(side for tile in tiles for side in tile), [*stands, VISION_END]


def _shapes(pixels: list[Tensor], sizes: list[tuple[int, ...]], ids: Tensor) -> dict[str, Any]:
    shapes = torch.tensor([side for size in sizes for side in size]).view(-1, 2)
    mask = (torch.arange(24) < shapes.prod(1)[:, None]).long()
    return {"pixel_values": torch.cat(pixels), "spatial_shapes": shapes, "pixel_attention_mask": mask}


# Video-LLaVA


def video_llava() -> Any:
    config = transformers.VideoLlavaConfig(
        vision_config=CLIP, text_config={**TEXT, "model_type": "llama"}, image_token_index=IMAGE,
        video_token_index=VIDEO, vision_feature_layer=-2,
    )  # fmt: skip
    return transformers.VideoLlavaForConditionalGeneration(config)


def _by_another_name(pixels: list[Tensor], sizes: list[tuple[int, ...]], ids: Tensor) -> dict[str, Any]:
    return {"pixel_values_images": torch.stack(pixels)}


# InternVL, Gemma 3, PaliGemma, Idefics3, SmolVLM, Mistral 3, Aya Vision


def internvl() -> Any:
    config = transformers.InternVLConfig(
        vision_config={**TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
        text_config={**TEXT, "model_type": "qwen2"}, image_token_id=IMAGE, image_seq_length=4,
    )  # fmt: skip
    return transformers.InternVLForConditionalGeneration(config)


def qianfan_ocr() -> Any:
    config = transformers.QianfanOCRConfig(
        vision_config={**TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
        text_config={**TEXT, "model_type": "qwen3"}, image_token_id=IMAGE, image_seq_length=4,
    )  # fmt: skip
    return transformers.QianfanOCRForConditionalGeneration(config)


def _intern_image(model: Any, generator: torch.Generator, kind: int) -> tuple[Tensor, tuple[int, ...], list[int]]:
    tiles = (1, 3)[kind]
    return _noise(generator, tiles, 3, 56, 56), (tiles,), [VISION_START, *[IMAGE] * 4 * tiles, VISION_END]


def _concatenate(pixels: list[Tensor], sizes: list[tuple[int, ...]], ids: Tensor) -> dict[str, Any]:
    return {"pixel_values": torch.cat(pixels)}


def gemma3() -> Any:
    text = {
        **TEXT,
        "model_type": "gemma3_text",
        "sliding_window": 64,
        "layer_types": layers("sliding_attention", "full_attention"),
    }
    config = transformers.Gemma3Config(
        vision_config=SIGLIP, text_config=text, image_token_id=IMAGE, image_token_index=IMAGE, mm_tokens_per_image=4,
        boi_token_index=VISION_START, eoi_token_index=VISION_END,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config)


def _gemma_image(model: Any, generator: torch.Generator, kind: int) -> tuple[Tensor, tuple[int, ...], list[int]]:
    return _noise(generator, 3, 56, 56), (1,), [VISION_START, *[IMAGE] * 4, VISION_END]


def _with_types(pixels: list[Tensor], sizes: list[tuple[int, ...]], ids: Tensor) -> dict[str, Any]:
    return {"pixel_values": torch.stack(pixels), "token_type_ids": (ids == IMAGE).long()}


def paligemma() -> Any:
    config = transformers.PaliGemmaConfig(
        vision_config={**SIGLIP, "projection_dim": 32}, text_config={**TEXT, "model_type": "gemma"},
        image_token_id=IMAGE, image_token_index=IMAGE, projection_dim=32,
    )  # fmt: skip
    return transformers.PaliGemmaForConditionalGeneration(config)


def _all_prefix(pixels: list[Tensor], sizes: list[tuple[int, ...]], ids: Tensor) -> dict[str, Any]:
    return {"pixel_values": torch.stack(pixels), "token_type_ids": torch.zeros_like(ids)}


def idefics3(kind: str = "Idefics3") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vision_config={**TOWER, "image_size": 56, "patch_size": 14}, text_config={**TEXT, "model_type": "llama"},
        image_token_id=IMAGE, scale_factor=2,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config)


def smolvlm() -> Any:
    return idefics3("SmolVLM")


def _fenced_image(model: Any, generator: torch.Generator, kind: int) -> tuple[Tensor, tuple[int, ...], list[int]]:
    """Draw one tile, or two and the whole in small, with a name and a fence before each."""
    tiles = (1, 3)[kind]
    names = [*(7, 8)[: tiles - 1], WHOLE]
    stands = [piece for name in names for piece in (VISION_START, name, *[IMAGE] * 4)]
    return _noise(generator, tiles, 3, 56, 56), (tiles,), [*stands, VISION_START]


def _named_image(model: Any, generator: torch.Generator, kind: int) -> tuple[Tensor, tuple[int, ...], list[int]]:
    """Draw tiles with a name before each."""
    tiles = (1, 3)[kind]
    names = [*(7, 8)[: tiles - 1], WHOLE]
    stands = [piece for name in names for piece in (name, *[IMAGE] * 4)]
    return _noise(generator, tiles, 3, 56, 56), (tiles,), [VISION_START, *stands, VISION_END]


def _broken_image(model: Any, generator: torch.Generator, kind: int) -> tuple[Tensor, tuple[int, ...], list[int]]:
    """Draw tiles with a line break after each."""
    tiles = (1, 3)[kind]
    stands = [*[IMAGE] * 4, NEWLINE] * tiles
    return _noise(generator, tiles, 3, 56, 56), (tiles,), [VISION_START, *stands, VISION_END]


def _split_inputs(pixels: list[Tensor], sizes: list[tuple[int, ...]], ids: Tensor) -> dict[str, Any]:
    rows, left = [], list(pixels)
    for row in (ids == IMAGE).sum(1).tolist():
        mine: list[Tensor] = []
        while sum(len(one) for one in mine) * 4 < row:
            mine.append(left.pop(0))
        rows.append(torch.cat(mine) if mine else torch.zeros(1, 3, 56, 56))
    most = max(map(len, rows))
    padded = [torch.cat([one, one.new_zeros(most - len(one), 3, 56, 56)]) for one in rows]
    return {"pixel_values": torch.stack(padded)}


def mistral3() -> Any:
    config = transformers.Mistral3Config(
        vision_config={**TOWER, "image_size": 112, "patch_size": 14, "model_type": "pixtral"},
        text_config={**TEXT, "model_type": "mistral"}, image_token_id=IMAGE, image_token_index=IMAGE,
        spatial_merge_size=2, vision_feature_layer=-1,
    )  # fmt: skip
    return transformers.Mistral3ForConditionalGeneration(config)


def mistral_large4() -> Any:
    text = {
        **TEXT, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8,
        "index_head_dim": 16, "index_n_heads": 2,
    }  # fmt: skip
    config = transformers.MistralLarge4Config(
        vision_config={**TOWER, "image_size": 112, "patch_size": 14, "model_type": "pixtral"}, text_config=text,
        image_token_id=IMAGE, spatial_merge_size=2, vision_feature_layer=-1,
    )  # fmt: skip
    return transformers.MistralLarge4ForConditionalGeneration(config)


def _pixtral_image(model: Any, generator: torch.Generator, kind: int) -> tuple[Tensor, tuple[int, ...], list[int]]:
    height, width = ((56, 84), (112, 56))[kind]
    pixels = torch.zeros(3, 112, 112)
    pixels[:, :height, :width] = _noise(generator, 3, height, width)
    row = [*[IMAGE] * (width // 28), NEWLINE]
    return pixels, (height, width), [*(row * (height // 28))[:-1], VISION_END]


def _sized(pixels: list[Tensor], sizes: list[tuple[int, ...]], ids: Tensor) -> dict[str, Any]:
    return {"pixel_values": torch.stack(pixels), "image_sizes": torch.tensor(sizes)}


def aya_vision() -> Any:
    config = transformers.AyaVisionConfig(
        vision_config=SIGLIP, text_config={**TEXT, "model_type": "cohere2", "layer_types": layers("full_attention")},
        image_token_id=IMAGE, image_token_index=IMAGE, downsample_factor=2, alignment_intermediate_size=40,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    return transformers.AyaVisionForConditionalGeneration(config)


def cohere2_vision() -> Any:
    config = transformers.Cohere2VisionConfig(
        vision_config=SIGLIP, text_config={**TEXT, "model_type": "cohere2", "layer_types": layers("full_attention")},
        image_token_id=IMAGE, downsample_factor=2, alignment_intermediate_size=40,
    )  # fmt: skip
    return transformers.Cohere2VisionForConditionalGeneration(config)


def deepseek_vl() -> Any:
    config = transformers.DeepseekVLConfig(
        vision_config=SIGLIP, text_config={**TEXT, "model_type": "llama"}, image_token_id=IMAGE
    )
    return transformers.DeepseekVLForConditionalGeneration(config)


def deepseek_vl_hybrid() -> Any:
    eyes = {
        **TOWER, "model_type": "sam_vision_model", "image_size": 64, "patch_size": 8, "output_channels": 8,
        "window_size": 4, "global_attn_indexes": [0], "num_pos_feats": 12,
    }  # fmt: skip
    config = transformers.DeepseekVLHybridConfig(
        vision_config=SIGLIP, high_res_vision_config=eyes, text_config={**TEXT, "model_type": "llama"},
        image_token_id=IMAGE, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.DeepseekVLHybridForConditionalGeneration(config)


def _both_sizes(pixels: list[Tensor], sizes: list[tuple[int, ...]], ids: Tensor) -> dict[str, Any]:
    small = torch.stack(pixels)
    return {"pixel_values": small, "high_res_pixel_values": torch.nn.functional.interpolate(small, (64, 64))}


CASES = {
    case.name: case
    for case in (
        Case("llava", llava, _square(56, 16), _stack),
        Case("vipllava", vipllava, _square(56, 16), _stack),
        Case("llava_next", llava_next, _tiled, _tiled_inputs, kinds=5),
        Case("llava_next_video", llava_next_video, _tiled, _tiled_inputs, kinds=5),
        Case("llava_onevision", llava_onevision, _tiled, _tiled_inputs, kinds=5),
        Case("qwen2_vl", qwen2_vl, _gridded, _gridded_inputs, kinds=3),
        Case("qwen2_5_vl", qwen2_5_vl, _gridded, _gridded_inputs, kinds=3),
        Case("qwen3_vl", qwen3_vl, _gridded, _gridded_inputs, kinds=3),
        Case("qwen3_vl_moe", qwen3_vl_moe, _gridded, _gridded_inputs, kinds=3),
        Case("qwen3_5", qwen3_5, _gridded, _gridded_inputs, kinds=3),
        Case("glm4v", glm4v, _gridded, _gridded_inputs, kinds=3),
        Case("glm46v", glm46v, _gridded, _gridded_inputs, kinds=3),
        Case("internvl", internvl, _intern_image, _concatenate, kinds=2),
        Case("gemma3", gemma3, _gemma_image, _with_types),
        Case("paligemma", paligemma, _square(56, 16), _all_prefix),
        Case("idefics3", idefics3, _fenced_image, _split_inputs, kinds=2),
        Case("smolvlm", smolvlm, _fenced_image, _split_inputs, kinds=2),
        Case("mistral3", mistral3, _pixtral_image, _sized, kinds=2),
        Case("aya_vision", aya_vision, _named_image, _concatenate, kinds=2),
        Case("cohere2_vision", cohere2_vision, _broken_image, _concatenate, kinds=2),
        Case("deepseek_vl", deepseek_vl, _square(56, 16), _stack),
        Case("deepseek_vl_hybrid", deepseek_vl_hybrid, _square(56, 16), _both_sizes),
        Case("qianfan_ocr", qianfan_ocr, _intern_image, _concatenate, kinds=2),
        Case("mistral_large4", mistral_large4, _pixtral_image, _sized, kinds=2, needs="MistralLarge4Config"),
        Case("video_llava", video_llava, _square(56, 16), _by_another_name),
        Case("exaone", exaone, _gridded, _grids_alone, kinds=3),
        Case("hyperclovax", hyperclovax, _gridded, _grids_alone, kinds=3),
        Case("lfm2_vl", lfm2_vl, _padded_tiles, _shapes, kinds=2),
        Case("lfm2_vl_plain", lfm2_vl_plain, _padded_tiles, _shapes, kinds=2),
        Case("lfm3_vl", lfm3_vl, _gridded, _grids_alone, kinds=3, needs="Lfm3VlConfig"),
        Case("minimax_m3", minimax_m3, _gridded, _grids_alone, kinds=3),
        Case("glm5_next", glm5_next, _gridded, _grids_alone, kinds=3),
        Case("videollama3", videollama3, _gridded, _merge_sizes, kinds=3),
    )
}


# Videos

VIDEO_CASES = (
    "llava_next_video", "llava_onevision", "video_llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "exaone",
    "hyperclovax", "lfm3_vl", "minimax_m3", "glm5_next", "videollama3", "glm4v", "glm46v",
)  # fmt: skip
#: Models whose clips come as one tensor and so have one length, and those that take no image beside a video.
ONE_LENGTH, VIDEOS_ALONE = VIDEO_CASES[:3], VIDEO_CASES[-2:]
#: Models whose frames stand in the prompt one by one, and those whose videos have the placeholder of images.
FRAME_BY_FRAME = ("qwen3_vl", "qwen3_5", "minimax_m3", "glm5_next", *VIDEOS_ALONE)
SAME_PLACEHOLDER = ("glm5_next", *VIDEOS_ALONE)
#: Tokens of a frame, and what stands behind a clip.
FRAMES = {"llava_next_video": (4, []), "llava_onevision": (4, [VIDEO]), "video_llava": (17, [])}


def make_videos(name: str, model: Any, rows: list[list[int]], seed: int = 0) -> dict[str, Any]:
    """Return left-padded inputs; a row is a list of clips by their number of frames, with an image after them."""
    case = CASES[name]
    prompts, clips, grids, pixels, sizes = [], [], [], [], []
    for number, row in enumerate(rows):
        generator = torch.Generator().manual_seed(seed + number)
        drawn, size, stands = case.image(model, generator, 0)
        ids = [BOS]
        for frames in row:
            clip, held = _clip(name, drawn.shape[-1], generator, frames)
            clips.append(clip)
            grids.append((frames, 4, 6))
            ids += [*held, 30]
        if row and name not in VIDEOS_ALONE:
            pixels.append(drawn)
            sizes.append(size)
            ids += stands
        prompts.append(ids + torch.randint(31, VOCABULARY, (3 + seed + number,), generator=generator).tolist())
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    if pixels:
        inputs |= case.inputs(pixels, sizes, ids)
    if clips:
        inputs["pixel_values_videos"] = torch.stack(clips) if name in ONE_LENGTH else torch.cat(clips)
    if name.startswith(("qwen2", "qwen3", "glm4")):
        shown = ids == (IMAGE if name in VIDEOS_ALONE else VIDEO)
        inputs["mm_token_type_ids"] = (ids == IMAGE).int().masked_fill(shown, 2)
    if name not in ONE_LENGTH and clips:
        inputs["video_grid_thw"] = torch.tensor(grids)
    if name == "videollama3" and clips:
        inputs["video_merge_sizes"] = torch.full((len(clips),), 2)
    return inputs


def _clip(name: str, width: int, generator: torch.Generator, frames: int) -> tuple[Tensor, list[int]]:
    """Draw a clip, and return its pixels and the ids that stand for it."""
    if name in ONE_LENGTH:
        tokens, behind = FRAMES[name]
        return _noise(generator, frames, 3, 56, 56), [*[VIDEO] * tokens * frames, *behind]
    clip = _noise(generator, frames * 24, width)
    if name not in FRAME_BY_FRAME:
        return clip, [VISION_START, *[VIDEO] * 6 * frames, VISION_END]
    # Every frame stands by itself, with the time it was taken at.
    placeholder = IMAGE if name in SAME_PLACEHOLDER else VIDEO
    stands = [x for time in range(frames) for x in (40 + time, VISION_START, *[placeholder] * 6, VISION_END)]
    return clip, [7, *stands, 8] if name == "glm5_next" else stands
