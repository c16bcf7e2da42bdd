"""How well can photographs be told apart by what the tower makes of their patches, layer by layer?

    python experiments/real_photos/probe.py --base runs/real_photos/base --photographs caltech101

A probe learns to name patches of training scenes. Then it names those of scenes of held-out photographs. The table has
the share of patches named right, and the share of photographs named right by the mean over their patches. That bounds
what a language model can know of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoProcessor, LlavaForConditionalGeneration

from features import Features
from kinds import Split, find_photographs
from mosaics import Mosaic, draw_mosaic
from projector import NOTHING, label_patches

#: Layers that a probe reads, and the width of its hidden layer; 0 for a linear probe.
LAYERS, WIDTHS = ((4,), (8,), (12,), (4, 8, 12)), (0, 576)
STEPS, BATCH, RATE, DROPOUT = 1500, 2048, 1e-3, 0.3


@dataclass(frozen=True)
class Seen:
    """Scenes as the tower sees them.

    Parameters
    ----------
    layers : dict of int to (scenes, patches, width) tensor
    kinds : (scenes, patches) int tensor
        `NOTHING` between photographs.
    photographs : (scenes, patches) int tensor
        The number of a patch's photograph in its scene; `NOTHING` between photographs.
    """

    layers: dict[int, Tensor]
    kinds: Tensor
    photographs: Tensor

    def read(self, layers: Sequence[int]) -> Tensor:
        """Return some layers side by side."""
        return torch.cat([self.layers[layer] for layer in layers], -1).float()


def see(model: Any, processor: Any, folder: Path, split: Split, side: int, count: int) -> Seen:
    """Return the first scenes of a split."""
    photographs = find_photographs(folder, split)
    mosaics = [draw_mosaic(number, photographs, split, side) for number in range(count)]
    encoder, patch = Features(model, processor, photographs, split, Path()), model.config.vision_config.patch_size
    read = sorted({layer for layers in LAYERS for layer in layers})
    parts: list[list[Tensor]] = []
    for first in track(range(0, count, 8), f"seeing scenes, {split}", console=Console(stderr=True)):
        found = encoder.layers(mosaics[first : first + 8])
        parts.append([found[layer] for layer in read])
    return Seen(
        {layer: torch.cat(some) for layer, some in zip(read, zip(*parts, strict=True), strict=True)},
        torch.stack([label_patches(mosaic, list(photographs), patch) for mosaic in mosaics]),
        torch.stack([_numbered(mosaic, patch) for mosaic in mosaics]),
    )


def _numbered(mosaic: Mosaic, patch: int) -> Tensor:
    names = [str(number) for number in range(len(mosaic.tiles))]
    tiles = tuple(replace(tile, kind=name) for tile, name in zip(mosaic.tiles, names, strict=True))
    return label_patches(replace(mosaic, tiles=tiles), names, patch)


def probe(train: Seen, test: Seen, layers: Sequence[int], width: int) -> tuple[float, float, int]:
    """Return the shares of held-out patches and photographs that a probe names right, and how many photographs.

    Parameters
    ----------
    train, test : Seen
    layers : sequence of int
    width : int
        Of the hidden layer; 0 for none.
    """
    shown = train.kinds != NOTHING
    rows, kinds = train.read(layers)[shown], train.kinds[shown]
    deviation, mean = torch.std_mean(rows, 0)
    torch.manual_seed(0)
    count, inputs = int(kinds.max()) + 1, rows.shape[1]
    hidden = [nn.Linear(inputs, width), nn.GELU(), nn.Dropout(DROPOUT)] if width else []
    net = nn.Sequential(*hidden, nn.Linear(width or inputs, count))
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    for step in range(STEPS):
        some = torch.randint(len(rows), (BATCH,))
        loss = F.cross_entropy(net((rows[some] - mean) / deviation), kinds[some])
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        chances = net((test.read(layers) - mean) / deviation).log_softmax(-1)
    shown = test.kinds != NOTHING
    patches = float((chances.argmax(-1)[shown] == test.kinds[shown]).float().mean())
    named = [
        bool(chance[where].mean(0).argmax() == kinds[where][0])
        for chance, kinds, numbers in zip(chances, test.kinds, test.photographs, strict=True)
        for number in range(int(numbers.max()) + 1)
        if (where := numbers == number).any()
    ]
    return patches, sum(named) / len(named), len(named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of the assembled model")
    parser.add_argument(
        "--photographs", type=Path, required=True, help="folder with one folder of photographs per class"
    )
    parser.add_argument("--side", type=int, default=168, help="pixels of a scene (default 168)")
    parser.add_argument("--scenes", type=int, default=2000, help="scenes to learn from (default 2,000)")
    parser.add_argument("--test-scenes", type=int, default=400, help="scenes to be asked about (default 400)")
    arguments = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(arguments.base, dtype=torch.bfloat16)
    processor = AutoProcessor.from_pretrained(arguments.base, backend="pil")
    train, test = (
        see(model, processor, arguments.photographs, split, arguments.side, count)
        for split, count in (("train", arguments.scenes), ("test", arguments.test_scenes))
    )
    table = Table("layers", "hidden layer", "patches, %", "photographs, %", "of")
    for width in WIDTHS:
        for layers in LAYERS:
            patches, named, count = probe(train, test, layers, width)
            cells = f"{100 * patches:.0f}", f"{100 * named:.0f}", f"{count:,}"
            table.add_row(", ".join(map(str, layers)), str(width or "none"), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
