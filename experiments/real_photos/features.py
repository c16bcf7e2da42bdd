"""What the vision tower makes of scenes, encoded ahead and kept on disk.

The tower is frozen, so it sees each scene once. A file holds the features of `SHARD` scenes and appears when it is
whole; whoever needs one that is not there, or that is of other scenes, encodes it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kinds import Split
from mosaics import Mosaic, draw_mosaic, render

SHARD, BATCH = 32, 8


class Features:
    """The features (patches, width) of scenes, in bfloat16, before the projector.

    Parameters
    ----------
    model, processor
        The LLaVA whose tower sees the scenes.
    photographs : mapping
        Those of the split, by kind.
    split : {"train", "test"}
    folder : Path
        Where the files are.
    """

    def __init__(
        self, model: Any, processor: Any, photographs: Mapping[str, Sequence[Path]], split: Split, folder: Path
    ) -> None:
        self.model, self.images = model, processor.image_processor
        self.photographs, self.split, self.folder = photographs, split, folder
        self._shard = lru_cache(maxsize=4)(self._load)

    def get(self, number: int, side: int) -> Tensor:
        """Return the features of a scene."""
        return self._shard(side, number // SHARD)[number % SHARD]

    def _load(self, side: int, shard: int) -> Tensor:
        path = self.folder / f"{self.split}-{side}" / f"{shard:05}.safetensors"
        numbers = range(shard * SHARD, (shard + 1) * SHARD)
        mosaics = [draw_mosaic(number, self.photographs, self.split, side) for number in numbers]
        seen = self._seen(mosaics)
        if not path.exists() or _noted(path) != seen:
            found = [self.encode(mosaics[first : first + BATCH]) for first in range(0, SHARD, BATCH)]
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}")
            save_file({"features": torch.cat(found)}, temporary, {"seen": seen})
            os.replace(temporary, path)
        return load_file(path)["features"]

    def _seen(self, mosaics: Sequence[Mosaic]) -> str:
        """Return what changes when scenes, or the layer that is read, do."""
        drawn = [
            (mosaic.ground, [(tile.path.parts[-2:], tile.box, tile.part, tile.mirrored) for tile in mosaic.tiles])
            for mosaic in mosaics
        ]
        return hashlib.sha256(repr((self.model.config.vision_feature_layer, drawn)).encode()).hexdigest()

    def encode(self, mosaics: Sequence[Mosaic]) -> Tensor:
        """Return the features (scenes, patches, width) of scenes, as the model itself would read them."""
        return self.layers(mosaics)[self.model.config.vision_feature_layer]

    @torch.no_grad()
    def layers(self, mosaics: Sequence[Mosaic]) -> list[Tensor]:
        """Return the input of the tower's first layer and each layer's output, without the class token."""
        images, side = [render(mosaic) for mosaic in mosaics], mosaics[0].side
        size = {"height": side, "width": side}
        pixels = self.images(images, size={"shortest_edge": side}, crop_size=size, return_tensors="pt")["pixel_values"]
        tower = self.model.model.vision_tower
        seen = tower(pixels.to(tower.device, tower.dtype), output_hidden_states=True)
        # Like the model: a layer's output as it is.
        return [layer[:, 1:].to("cpu", torch.bfloat16).contiguous() for layer in seen.hidden_states]


def _noted(path: Path) -> str | None:
    with safe_open(path, "pt") as opened:
        return opened.metadata().get("seen")
