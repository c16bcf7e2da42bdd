"""Idefics3 and SmolVLM: images split into tiles, patches shuffled into tokens, one linear layer for a projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from zooprune.families.base import Family
from zooprune.families.tiling import pooled, runs, square_tiles, tiled_images
from zooprune.signals import TowerSignal
from zooprune.visuals import Encoded, Modality


class Idefics3(Family):
    """``Idefics3ForConditionalGeneration`` and ``SmolVLMForConditionalGeneration``.

    Before every tile stand a fence and a name of the tile, and the last tile of an image, the whole of it in small,
    always has the same name and a fence behind it too. So the end of a prompt's last image tells where the others
    end, whatever ids the tokenizer gave to fence and names. In a prompt without fences, tiles that follow each other
    without a break are one image.
    """

    architectures = ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration")
    title = "Idefics3, SmolVLM, SmolVLM2"
    sensitivity = "linear"
    traits = ("tiles",)
    tower = "vision_model"
    image_arguments = ("pixel_values", "pixel_attention_mask")

    def tail(self, projector: Any) -> nn.Module:
        """Return what follows the shuffle."""
        return projector.modality_projection

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode all tiles."""
        connector = model.model.connector
        modules = {"projector": connector.modality_projection}
        output, seen, patches = self.forward(model, modality, inputs, modules, signals)
        # The model hands back one piece per prompt, however many tiles it has.
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        total = (side // connector.scale_factor) ** 2
        embeddings = torch.cat(list(output.pooler_output)).unflatten(0, (-1, total))
        tiles = square_tiles(seen["projector"].read, embeddings, self.token_wise(connector), pooled(patches, total))
        ids = inputs["input_ids"]
        prompts = zip(ids.tolist(), runs(self.slots(model, modality, ids)), strict=True)
        images = [image for row, found in prompts for image in _images(row, found)]
        slots = [sum(map(len, image)) for image in images]
        return Encoded(tiled_images(tiles, slots, map(_grid, images)), output)


def _images(ids: list[int], prompt: list[range]) -> list[list[range]]:
    """Return the runs of slots of each image of a prompt, from its ids and the runs of slots in it."""
    if not prompt:
        return []
    heads = [ids[max(0, run.start - 2) : run.start] for run in prompt]
    fence, last = ids[prompt[-1].stop : prompt[-1].stop + 1], heads[-1]
    fenced = all(len(head) == 2 and head[:1] == fence for head in heads)
    images: list[list[range]] = [[]]
    for run, head in zip(prompt, heads, strict=True):
        images[-1].append(run)
        if head == last or not fenced:
            images.append([])
    return images[:-1]


def _grid(tiles: Sequence[range]) -> tuple[int, int] | None:
    """Return the rows and columns of an image's tiles without the last: rows end with more than a fence and a name."""
    if len(tiles) == 1:
        return None
    ends = [after.start - before.stop > 2 for before, after in pairwise(tiles)]
    columns = ends.index(True) + 1 if True in ends else len(ends)
    rows, rest = divmod(len(ends), columns)
    evenly = ends == ([False] * (columns - 1) + [True]) * rows
    return (rows, columns) if evenly and not rest else None
