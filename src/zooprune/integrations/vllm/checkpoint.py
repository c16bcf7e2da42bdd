"""Write a LLaVA checkpoint as vLLM reads it: with the names of the hub's checkpoints.

``python -m zooprune.integrations.vllm.checkpoint OUT`` does so with the bundled model. Recent versions of transformers
leave the tower's ``vision_model.`` out of the names when they save; vLLM 0.32 looks for it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from safetensors.torch import load_file, save_file

from zooprune.bundled import BUNDLED_FOLDER

_TOWER, _INNER = "vision_tower.", "vision_model."


def write_for_vllm(folder: Path, out: Path) -> None:
    """Copy a checkpoint to another folder under the names that vLLM reads.

    Parameters
    ----------
    folder, out : Path
        `out` is made if it does not exist.
    """
    out.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            renamed = {_name(name): value for name, value in load_file(path).items()}
            save_file(renamed, out / path.name, {"format": "pt"})
        else:
            shutil.copy(path, out)


def _name(name: str) -> str:
    before, found, after = name.partition(_TOWER)
    return before + _TOWER + _INNER + after if found and not after.startswith(_INNER) else name


def main(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    model: Annotated[Path, typer.Option(help="Folder with a LLaVA checkpoint.")] = BUNDLED_FOLDER,
) -> None:
    """Write the bundled model, or another LLaVA, as vLLM reads it."""
    write_for_vllm(model, out)
    print(f"vllm serve {out}")


if __name__ == "__main__":
    typer.run(main)
