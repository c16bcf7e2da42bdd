"""Write what was learnt: a model folder that loads like any checkpoint, and the small file to pass on.

    python experiments/real_photos/export_model.py --base runs/real_photos/base --run runs/real_photos/train \
        --out runs/real_photos/model

The averaged weights of the last checkpoint are taken, and LoRA is added to the decoder's weights. `adapter.safetensors`
holds projector and LoRA by themselves, LoRA in eight bits. With --adapter such a file is taken instead of a checkpoint:
`experiments/real_photos/adapter.safetensors` holds what was learnt for the report.
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

AVERAGE, SCALE = "average/", ".scale"


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


def shrink(learnt: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return LoRA as int8, with a scale for each row, and all else as bfloat16."""
    stored = {}
    for name, value in learnt.items():
        if ".lora_" in name:
            scale = value.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            stored[name], stored[name + SCALE] = (value.float() / scale).round().to(torch.int8), scale
        else:
            stored[name] = value.to(torch.bfloat16)
    return {name: value.contiguous() for name, value in stored.items()}


def expand(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights, in float32, of which `shrink` made this."""
    names = [name for name in stored if not name.endswith(SCALE)]
    return {name: stored[name].float() * stored.get(name + SCALE, torch.ones(())) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the assembled model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="folder of the training run")
    source.add_argument("--adapter", type=Path, help="an adapter.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    arguments = parser.parse_args()
    if arguments.adapter:
        learnt = expand(load_file(arguments.adapter))
    else:
        stored = load_file(arguments.run / "checkpoint.safetensors")
        learnt = {name.removeprefix(AVERAGE): value for name, value in stored.items() if name.startswith(AVERAGE)}
    model = LlavaForConditionalGeneration.from_pretrained(arguments.base, dtype=torch.bfloat16)
    merge(model, learnt)
    model.save_pretrained(arguments.out)
    AutoProcessor.from_pretrained(arguments.base, backend="pil").save_pretrained(arguments.out)
    if arguments.run:
        save_file(shrink(learnt), arguments.run / "adapter.safetensors")
    print(arguments.out)


if __name__ == "__main__":
    main()
