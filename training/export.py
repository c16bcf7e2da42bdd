"""Write a training checkpoint as the model that ships with the package.

python training/export.py runs/bundled
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import zooprune.bundled
from model import build_model, build_processor

FOLDER = Path(zooprune.bundled.__file__).parent / "model"


def main(run: Path) -> None:
    processor = build_processor()
    model = build_model(processor.tokenizer)
    tensors = load_file(run / "checkpoint.safetensors")
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    # lm_head is the embedding table again and is stored once.
    missing = model.load_state_dict(weights, strict=False)
    if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"{run} does not hold this model: {missing}")
    model.generation_config.max_new_tokens = 8
    model.to(torch.bfloat16).save_pretrained(FOLDER)
    processor.save_pretrained(FOLDER)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
