"""Write what was learnt: a model folder that loads like any checkpoint, and the small file to pass on.

    python experiments/real_photos/export_model.py --base runs/real_photos/base --run runs/real_photos/train \
        --out runs/real_photos/model

The averaged weights of the last checkpoint are taken. LoRA is added to the decoder's weights; `adapter.safetensors`
holds projector and LoRA by themselves, and with --adapter such a file is taken instead of a checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from learner import ALPHA, RANK

AVERAGE = "average/"


@torch.no_grad()
def merge(model: Any, learnt: Mapping[str, Tensor]) -> None:
    """Put a projector into a model and add LoRA to the weights that it belongs to.

    Parameters
    ----------
    model
        The assembled LLaVA, in any dtype.
    learnt : mapping
        Weights by the names of `learner.Learner.weights`.
    """
    weights = dict(model.named_parameters())
    for name, value in learnt.items():
        if ".lora_A." in name:
            up = learnt[name.replace(".lora_A.", ".lora_B.")].float()
            weight = weights[name.partition(".lora_A.")[0] + ".weight"]
            weight.copy_(weight.float() + ALPHA / RANK * up @ value.float())
        elif ".lora_B." not in name:
            weights[name].copy_(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the assembled model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="folder of the training run")
    source.add_argument("--adapter", type=Path, help="an adapter.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    arguments = parser.parse_args()
    if arguments.adapter:
        learnt = load_file(arguments.adapter)
    else:
        stored = load_file(arguments.run / "checkpoint.safetensors")
        learnt = {name.removeprefix(AVERAGE): value for name, value in stored.items() if name.startswith(AVERAGE)}
    model = LlavaForConditionalGeneration.from_pretrained(arguments.base, dtype=torch.bfloat16)
    merge(model, learnt)
    model.save_pretrained(arguments.out)
    AutoProcessor.from_pretrained(arguments.base, backend="pil").save_pretrained(arguments.out)
    if arguments.run:
        small = {name: value.to(torch.bfloat16).contiguous() for name, value in learnt.items()}
        save_file(small, arguments.run / "adapter.safetensors")
    print(arguments.out)


if __name__ == "__main__":
    main()
