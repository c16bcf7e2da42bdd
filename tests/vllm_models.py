"""Tiny models in folders, as vLLM loads them, and both engines on the same requests.

Import this before vLLM: it sets how vLLM behaves on a CPU.
"""

from __future__ import annotations

import os

# One process and one thread, wherever the system puts them; the cache is small, and so are the models.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "INFO", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import real_processors
import zoo_of_models
from zooprune import prune
from zooprune.integrations.vllm.checkpoint import write_for_vllm
from zooprune.reports import ImageReport

#: vLLM's attention on a CPU takes heads of 32 and wider.
TEXT = zoo_of_models.TEXT | {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
CLIP = zoo_of_models.CLIP | {"hidden_size": 32, "intermediate_size": 64}
MROPE = zoo_of_models.MROPE | {"mrope_section": [4, 6, 6]}
#: Tokens of a reply, and how far log probabilities may be apart.
NEW_TOKENS, NEAR = 12, 1e-4


def llava() -> tuple[Any, Any]:
    config = transformers.LlavaConfig(
        vision_config=CLIP, text_config={**TEXT, "model_type": "llama"}, image_token_id=zoo_of_models.IMAGE,
        image_token_index=zoo_of_models.IMAGE, vision_feature_layer=-2, vision_feature_select_strategy="default",
        image_seq_length=16,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config), real_processors.llava()


def llava_next() -> tuple[Any, Any]:
    config = transformers.LlavaNextConfig(
        vision_config=CLIP, text_config={**TEXT, "model_type": "llama"}, image_token_id=zoo_of_models.IMAGE,
        image_token_index=zoo_of_models.IMAGE, image_grid_pinpoints=zoo_of_models.PINPOINTS, vision_feature_layer=-2,
    )  # fmt: skip
    return transformers.LlavaNextForConditionalGeneration(config), real_processors.llava_next()


def _qwen_processor(kind: str, videos: str) -> Any:
    parts = real_processors.qwen(kind)
    size = {"shortest_edge": 2 * 8 * 8, "longest_edge": 4 * 40 * 40}
    video = getattr(transformers, videos)(patch_size=4, size=size)
    return getattr(transformers, f"{kind}Processor")(parts.image_processor, parts.tokenizer, video)


def qwen2_5_vl() -> tuple[Any, Any]:
    config = transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 64, "out_hidden_size": 64, "num_heads": 2, "patch_size": 4,
            "intermediate_size": 96, "window_size": 16, "fullatt_block_indexes": [1],
        },
        text_config={**TEXT, "rope_parameters": MROPE}, **zoo_of_models.QWEN,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config), _qwen_processor(
        "Qwen2_5_VL", "Qwen2VLVideoProcessor"
    )


def qwen3_vl() -> tuple[Any, Any]:
    config = transformers.Qwen3VLConfig(
        vision_config={
            "depth": 3, "hidden_size": 64, "out_hidden_size": 64, "num_heads": 2, "patch_size": 4,
            "intermediate_size": 96, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        text_config={**TEXT, "rope_parameters": {**MROPE, "mrope_interleaved": True}}, **zoo_of_models.QWEN,
    )  # fmt: skip
    return transformers.Qwen3VLForConditionalGeneration(config), _qwen_processor("Qwen3VL", "Qwen3VLVideoProcessor")


#: How each model is built, and what stands for an image in its prompts.
MODELS = {
    "llava": (llava, "<image>"),
    "llava_next": (llava_next, "<image>"),
    "qwen2_5_vl": (qwen2_5_vl, "<|vision_start|> <|image_pad|> <|vision_end|>"),
    "qwen3_vl": (qwen3_vl, "<|vision_start|> <|image_pad|> <|vision_end|>"),
}


def save(name: str, folder: Path) -> Path:
    """Write a tiny model where vLLM and transformers both find it."""
    torch.manual_seed(0)
    model, processor = MODELS[name][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            # Large enough to tell images apart.
            parameter.mul_(4 if parameter.ndim > 1 else 1)
            if not parameter.any():
                parameter.normal_(0, 0.2)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = zoo_of_models.PAD
    plain = folder / "plain"
    model.save_pretrained(plain)
    processor.save_pretrained(plain)
    write_for_vllm(plain, folder / name)
    return folder / name


@dataclass(frozen=True)
class Request:
    """A prompt with as many images and videos, (frames, height, width, 3), as it has placeholders."""

    text: str
    images: tuple[Image.Image, ...] = ()
    videos: tuple[np.ndarray, ...] = ()


#: What is known of every video: four frames, all of which are to be shown.
METADATA = {"fps": 2.0, "duration": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3], "video_backend": "none"}
VIDEO = "<|vision_start|> <|video_pad|> <|vision_end|>"


def video(width: int, height: int, seed: int) -> np.ndarray:
    """Return a video with something in it."""
    return np.stack([np.asarray(picture(width, height, seed + frame)) for frame in range(4)])


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Return a picture with something in it: a few large patches of noise."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 255, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def requests(marker: str) -> list[Request]:
    """Return requests with a tall, a wide, a small and a square image, with two of them, and with none."""
    sizes = [(40, 120), (150, 50), (17, 19), (64, 64)]
    found = [
        Request(f"w7 {marker} w8 w{9 + number} w3", (picture(*size, number),)) for number, size in enumerate(sizes)
    ]
    found.append(Request(f"w5 {marker} w4 {marker} w2 w1", (picture(90, 30, 7), picture(30, 70, 8))))
    found.append(Request("w11 w12 w13 w14"))
    return found


@dataclass(frozen=True)
class Reply:
    """New tokens with their log probabilities, and the length of the prompt that was read."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt: int


def save_adapter(folder: Path, out: Path) -> Path:
    """Write a random LoRA adapter of a model's language model, large enough to change replies."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    layers = r".*language_model.*\.(q_proj|v_proj|down_proj)"
    lora = LoraConfig(r=8, lora_alpha=64, target_modules=layers, init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(out)
    return out


def by_transformers(
    folder: Path, asked: Sequence[Request], method: str | None = None, *, adapter: Path | None = None, **options: Any
) -> list[Reply]:
    """Answer with transformers, pruned by zooprune where a method is given, and through an adapter where one is."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter is not None:
        from peft import PeftModel

        # Its layers take the place of the model's own.
        PeftModel.from_pretrained(model, adapter)
    processor = AutoProcessor.from_pretrained(folder)
    replies = []
    for request in asked:
        shown: dict[str, Any] = {"images": list(request.images) or None}
        if request.videos:
            shown |= {"videos": list(request.videos), "do_sample_frames": False}
            shown |= {"video_metadata": [METADATA] * len(request.videos)}
        inputs = processor(text=[request.text], **shown, return_tensors="pt", add_special_tokens=False)
        generate = {
            "max_new_tokens": NEW_TOKENS,
            "do_sample": False,
            "output_logits": True,
            "return_dict_in_generate": True,
        }
        with torch.no_grad():
            if method is None or not (request.images or request.videos):
                output, read = model.generate(**inputs, **generate), inputs["input_ids"].shape[1]
            else:
                with prune(model, method, **options) as session:
                    output = model.generate(**inputs, **generate)
                read = session.reports[-1].pruned_length
        new = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        logits = torch.stack(output.logits)[:, 0].float().log_softmax(-1)
        replies.append(Reply(tuple(new), tuple(logits[range(len(new)), new].tolist()), read))
    return replies


def kept_by_transformers(folder: Path, request: Request, method: str, **options: Any) -> list[ImageReport]:
    """Return what zooprune keeps of a request's images with transformers."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(text=[request.text], images=list(request.images), return_tensors="pt", add_special_tokens=False)
    with torch.no_grad(), prune(model, method, **options) as session:
        model.generate(**inputs, max_new_tokens=1)
    return list(session.reports[-1].images)


@contextmanager
def engine(folder: Path, pruning: dict[str, Any] | None = None, **options: Any) -> Iterator[Any]:
    """Run vLLM's engine in this process."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    additional = {} if pruning is None else {"zooprune": pruning}
    defaults = {
        "dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8, "block_size": 32,
        "limit_mm_per_prompt": {"image": 2}, "seed": 0, "disable_log_stats": False,
    }  # fmt: skip
    llm = LLM(str(folder), additional_config=additional, **defaults | options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()


def by_vllm(llm: Any, asked: Sequence[Request], *, adapter: Path | None = None, **arguments: Any) -> list[Reply]:
    """Answer with vLLM, all requests at once; `arguments` are the requests' mm_processor_kwargs."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    tokenizer = llm.get_tokenizer()
    prompts = []
    for request in asked:
        prompt = {"prompt_token_ids": tokenizer(request.text, add_special_tokens=False)["input_ids"]}
        data = {"image": list(request.images)}
        data["video"] = [(each, METADATA | {"do_sample_frames": False}) for each in request.videos]
        data = {modality: items for modality, items in data.items() if items}
        if data:
            prompt |= {"multi_modal_data": data, "mm_processor_kwargs": arguments}
        prompts.append(prompt)
    greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, logprobs=1, ignore_eos=True)
    replies = []
    lora = None if adapter is None else LoRARequest(adapter.name, 1, str(adapter))
    for output in llm.generate(prompts, greedy, lora_request=lora, use_tqdm=False):
        completion = output.outputs[0]
        chosen = [
            values[token].logprob for token, values in zip(completion.token_ids, completion.logprobs, strict=True)
        ]
        replies.append(Reply(tuple(completion.token_ids), tuple(chosen), len(output.prompt_token_ids)))
    return replies


def alike(replies: Sequence[Reply], expected: Sequence[Reply]) -> None:
    """Assert that two engines have read as much, and replied the same for the same reasons."""
    for number, (reply, other) in enumerate(zip(replies, expected, strict=True)):
        assert reply.prompt == other.prompt, number
        assert reply.tokens == other.tokens, number
        assert max(abs(a - b) for a, b in zip(reply.logprobs, other.logprobs, strict=True)) < NEAR, number
