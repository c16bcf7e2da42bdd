"""Does vLLM with the plug-in answer as transformers with zooprune does, and how many of the answers are right?

    .venv-vllm/bin/python benchmarks/vllm_equal.py [--questions 200] [--keeps 192 64] [--dropped discard mean]
                                                   [--dtype float32] [--alone]

The bundled model answers questions of its benchmark greedily on both engines, in the same environment, from the same
token ids; every new token is compared. Made by `make test-vllm`, that environment has both.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

# Beside other work, threads that wait for a busy processor cost more than they bring.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1",
}  # fmt: skip

import torch
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

from environment import write
from zooprune import load_bundled, prune
from zooprune.bundled import BUNDLED_FOLDER
from zooprune.bundled.benchmark import load_benchmark, scene_image
from zooprune.evaluation.metrics import is_right
from zooprune.integrations.vllm.checkpoint import write_for_vllm
from zooprune.policy import Dropped

NEW_TOKENS = 16


def conversation(item: Any) -> list[dict[str, Any]]:
    images = [{"type": "image"} for _ in item.scenes]
    return [{"role": "user", "content": [*images, {"type": "text", "text": item.question}]}]


def by_transformers(
    asked: list[tuple[str, list[Any]]], keep: int | None, dropped: Dropped, dtype: torch.dtype
) -> list[list[int]]:
    model, processor = load_bundled()
    model, replies = model.to(dtype), []
    for text, images in asked:
        inputs = processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False).to(dtype)
        if keep is None:
            output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        else:
            # Where several images are in a prompt, vLLM numbers kept tokens anew, too.
            with prune(model, "zoo", keep=keep, positions="contiguous", dropped=dropped):
                output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        replies.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    return replies


def by_vllm(
    folder: Path, asked: list[tuple[str, list[Any]]], keep: int | None, dropped: Dropped, dtype: str
) -> tuple[list[list[int]], float]:
    additional = {} if keep is None else {"zooprune": {"method": "zoo", "keep": keep, "dropped": dropped}}
    llm = LLM(
        str(folder), dtype=dtype, enforce_eager=True, max_model_len=2048, max_num_seqs=16, block_size=32,
        limit_mm_per_prompt={"image": 2}, additional_config=additional,
    )  # fmt: skip
    tokenizer = llm.get_tokenizer()
    prompts = [
        {
            "prompt_token_ids": tokenizer(text, add_special_tokens=False)["input_ids"],
            "multi_modal_data": {"image": images},
        }
        for text, images in asked
    ]
    began = time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=NEW_TOKENS), use_tqdm=False)
    seconds = time.perf_counter() - began
    llm.llm_engine.engine_core.shutdown()
    del llm
    cleanup_dist_env_and_memory()
    return [list(output.outputs[0].token_ids) for output in outputs], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--keeps", type=int, nargs="*", default=[192, 64])
    parser.add_argument("--dropped", nargs="*", default=["discard", "mean"], choices=["discard", "mean"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--alone", action="store_true", help="do not ask transformers, which takes most of the time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    _, processor = load_bundled()
    items = load_benchmark()[: arguments.questions]
    asked = [
        (
            processor.apply_chat_template(conversation(item), add_generation_prompt=True, tokenize=False),
            [scene_image(scene) for scene in item.scenes],
        )
        for item in items
    ]
    settings = [(None, "discard"), *((keep, dropped) for keep in arguments.keeps for dropped in arguments.dropped)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_for_vllm(BUNDLED_FOLDER, Path(folder))
        for keep, dropped in settings:
            found, seconds = by_vllm(Path(folder), asked, keep, dropped, arguments.dtype)
            equal = None
            if not arguments.alone:
                expected = by_transformers(asked, keep, dropped, getattr(torch, arguments.dtype))
                equal = sum(one == other for one, other in zip(found, expected, strict=True))
            texts = processor.batch_decode(found, skip_special_tokens=True)
            wrong = [
                item.id for item, text in zip(items, texts, strict=True) if not is_right(text.strip(), [item.answer])
            ]
            rows.append(
                {"keep": keep, "dropped": dropped, "questions": len(asked), "equal": equal, "wrong": wrong}
                | {"seconds": seconds}
            )
            print(
                f"{keep or 'all'} tokens, {dropped}: {len(asked) - len(wrong)} of {len(asked)} replies right, "
                f"{'?' if equal is None else equal} equal, vLLM took {seconds:.1f} s",
                flush=True,
            )
    print(write("vllm_equal", {"dtype": arguments.dtype, "rows": rows}))


if __name__ == "__main__":
    main()
