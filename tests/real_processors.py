"""The real processors of transformers around tiny tokenizers, for the models of `zoo_of_models`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast
from transformers.models.smolvlm import processing_smolvlm

from zoo_of_models import BOS, IMAGE, PAD, PINPOINTS, VIDEO, VOCABULARY

#: Stands where the part for videos would: the real ones need torchvision.
NO_VIDEOS = transformers.CLIPImageProcessorPil()
SQUARE = {"height": 56, "width": 56}


@dataclass(frozen=True)
class Real:
    """How a model's processor is made, and what stands for an image in the text it takes."""

    model: str
    build: Callable[[], Any]
    marker: str = "<image>"
    #: Whether images come in one list per prompt.
    nested: bool = False
    #: Whether transformers offers this processor only beside torchvision.
    torchvision: bool = False


def tokenizer(image: str, *markers: str, video: str = "<video>", **named: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words, one id for each marker, with the ids the tiny models expect."""
    special = {PAD: "<pad>", BOS: "<s>", VIDEO: video, IMAGE: image}
    rest = iter(["<unk>", "\n", "\n\n", *markers, *(f"w{number}" for number in range(VOCABULARY))])
    words = [special.get(number) or next(rest) for number in range(VOCABULARY)]
    model = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = Split(Regex(" +"), "removed")
    unnamed = {f"marker_{number}": marker for number, marker in enumerate((image, video, *markers))}
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", padding_side="left",
        extra_special_tokens=unnamed | named,
    )  # fmt: skip


def processor(name: str) -> Any:
    """Return a processor's class, with nothing asked of its part for videos."""
    parent = getattr(transformers, name)

    def check(self: Any, argument: str, value: Any) -> Any:
        return value if argument == "video_processor" else parent.check_argument_for_proper_class(self, argument, value)

    return type(name, (parent,), {"check_argument_for_proper_class": check})


def llava() -> Any:
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=SQUARE)
    return transformers.LlavaProcessor(
        images, tokenizer("<image>"), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def llava_next() -> Any:
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
    )
    return transformers.LlavaNextProcessor(
        images, tokenizer("<image>"), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def llava_next_video() -> Any:
    parts = llava_next()
    return processor("LlavaNextVideoProcessor")(
        NO_VIDEOS, parts.image_processor, parts.tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def llava_onevision() -> Any:
    images = transformers.LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=PINPOINTS)
    return processor("LlavaOnevisionProcessor")(
        images, tokenizer("<image>"), NO_VIDEOS, num_image_tokens=16, vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )  # fmt: skip


def qwen(kind: str = "Qwen2VL") -> Any:
    images = transformers.Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 8 * 8, "longest_edge": 40 * 40})
    words = tokenizer("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", video="<|video_pad|>")
    return processor(f"{kind}Processor")(images, words, NO_VIDEOS)


def glm4v(kind: str = "Glm4v") -> Any:
    size = {"shortest_edge": 2 * 8 * 8, "longest_edge": 2 * 40 * 40}
    images = getattr(transformers, f"{kind}ImageProcessorPil")(patch_size=4, size=size)
    markers = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
    words = tokenizer("<|image|>", *markers, video="<|video|>")
    return processor(f"{kind}Processor")(images, words, NO_VIDEOS)


def internvl() -> Any:
    images = transformers.GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=4)
    words = tokenizer(
        "<IMG_CONTEXT>", "<img>", "</img>", start_image_token="<img>", end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    return processor("InternVLProcessor")(images, words, NO_VIDEOS, image_seq_length=4)


def gemma3() -> Any:
    images = transformers.Gemma3ImageProcessorPil(size=SQUARE)
    words = tokenizer("<soft>", "<begin>", "<end>", image_token="<soft>", boi_token="<begin>", eoi_token="<end>")
    return transformers.Gemma3Processor(images, words, image_seq_length=4)


def paligemma() -> Any:
    images = transformers.SiglipImageProcessorPil(size=SQUARE)
    images.image_seq_length = 16
    return transformers.PaliGemmaProcessor(images, tokenizer("<image>", image_token="<image>"))


IDEFICS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")


def idefics3() -> Any:
    tiles = {"size": {"longest_edge": 168}, "max_image_size": {"longest_edge": 56}}
    names = [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
    words = tokenizer("<image>", *IDEFICS, *names)
    return transformers.Idefics3Processor(transformers.Idefics3ImageProcessorPil(**tiles), words, image_seq_len=4)


def smolvlm() -> Any:
    # Only used to spell out the number of a video's frames.
    processing_smolvlm.num2words = processing_smolvlm.num2words or str
    parts = idefics3()
    images = transformers.SmolVLMImageProcessorPil(size={"longest_edge": 168}, max_image_size={"longest_edge": 56})
    return processor("SmolVLMProcessor")(images, parts.tokenizer, NO_VIDEOS, image_seq_len=4)


def pixtral() -> Any:
    images = transformers.PixtralImageProcessorPil(patch_size={"height": 14, "width": 14}, size={"longest_edge": 112})
    words = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    return transformers.PixtralProcessor(images, words, patch_size=14, spatial_merge_size=2)


def aya_vision() -> Any:
    images = transformers.GotOcr2ImageProcessorPil(size=SQUARE, max_patches=4)
    markers = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", *(f"TILE_{number}" for number in range(1, 5)), "TILE_GLOBAL")
    words = tokenizer("<|IMG_PATCH|>", *markers)
    return transformers.AyaVisionProcessor(images, words, patch_size=14, img_size=56, downsample_factor=2)


def cohere2_vision() -> Any:
    images = transformers.Cohere2VisionImageProcessor(size=SQUARE, max_patches=4, patch_size=2)
    words = tokenizer(
        "<patch>", "<begin>", "<end>", "<break>", image_token="<patch>", boi_token="<begin>", eoi_token="<end>",
        img_line_break_token="<break>",
    )  # fmt: skip
    return transformers.Cohere2VisionProcessor(images, words)


def deepseek_vl() -> Any:
    images = transformers.DeepseekVLImageProcessorPil(size=SQUARE)
    words = tokenizer("<image>", image_token="<image>")
    return transformers.DeepseekVLProcessor(images, words, num_image_tokens=16)


REAL = {
    one.model: one
    for one in (
        Real("llava", llava),
        Real("vipllava", llava),
        Real("llava_next", llava_next),
        Real("llava_next_video", llava_next_video),
        Real("llava_onevision", llava_onevision),
        Real("qwen2_vl", qwen, "<|vision_start|><|image_pad|><|vision_end|>"),
        Real("qwen2_5_vl", lambda: qwen("Qwen2_5_VL"), "<|vision_start|><|image_pad|><|vision_end|>"),
        Real("qwen3_vl", lambda: qwen("Qwen3VL"), "<|vision_start|><|image_pad|><|vision_end|>"),
        Real("qwen3_5", lambda: qwen("Qwen3VL"), "<|vision_start|><|image_pad|><|vision_end|>"),
        Real("glm4v", glm4v, "<|begin_of_image|><|image|><|end_of_image|>"),
        Real("glm46v", lambda: glm4v("Glm46V"), "<|begin_of_image|><|image|><|end_of_image|>"),
        Real("internvl", internvl, "<IMG_CONTEXT>"),
        Real("gemma3", gemma3, "<begin>", nested=True),
        Real("paligemma", paligemma),
        Real("idefics3", idefics3, nested=True),
        Real("smolvlm", smolvlm, nested=True),
        Real("mistral3", pixtral, "[IMG]", torchvision=True),
        Real("aya_vision", aya_vision),
        Real("cohere2_vision", cohere2_vision, "<patch>", torchvision=True),
        Real("deepseek_vl", deepseek_vl),
    )
}
