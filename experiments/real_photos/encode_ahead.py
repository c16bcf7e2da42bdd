r"""Encode the scenes that training is going to show, in several processes: on a GPU, rendering is slower than learning.

    python experiments/real_photos/encode_ahead.py --base runs/real_photos/base --photographs caltech101 \
        --out runs/real_photos/train --processes 12

Run it beside `teach.py` and a little ahead of it. Scenes that are there already are not encoded again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors import safe_open
from torch.multiprocessing import spawn
from transformers import AutoProcessor, LlavaForConditionalGeneration

from features import SHARD, Features
from kinds import find_photographs
from teach import SOLVED_ON, STAGES, place


def shards(step: int) -> list[tuple[int, int]]:
    """Return the side and the number of every file of features that training reads from a step on, in order."""
    found = [(side, shard) for side, count in SOLVED_ON.items() for shard in range(count // SHARD)] if step == 0 else []
    for number in range(step, sum(stage.steps for stage in STAGES)):
        stage, _, first = place(number)
        last = first + stage.sequences - 1
        found += [(stage.side, shard) for shard in range(first // SHARD, last // SHARD + 1)]
    return list(dict.fromkeys(found))


def encode(rank: int, arguments: argparse.Namespace, wanted: list[tuple[int, int]]) -> None:
    """Encode every so many-th file."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LlavaForConditionalGeneration.from_pretrained(arguments.base, dtype=torch.bfloat16).to(device)
    processor = AutoProcessor.from_pretrained(arguments.base, backend="pil")
    photographs = find_photographs(arguments.photographs, "train")
    features = Features(model, processor, photographs, "train", arguments.out / "features")
    for side, shard in wanted[rank :: arguments.processes]:
        features.get(shard * SHARD, side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the assembled model")
    parser.add_argument("--photographs", type=Path, required=True, help="folder with a folder of photographs per class")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--processes", type=int, default=4, help="how many (default 4)")
    arguments = parser.parse_args()
    path, step = arguments.out / "checkpoint.safetensors", 0
    if path.exists():
        with safe_open(path, "pt") as opened:
            step = int(opened.metadata()["step"])
    spawn(encode, (arguments, shards(step)), nprocs=arguments.processes)


if __name__ == "__main__":
    main()
