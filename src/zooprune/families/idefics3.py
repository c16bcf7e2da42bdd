"""Idefics3 and SmolVLM: images split into tiles, patches shuffled into tokens, one linear layer for a projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        return Encoded(tiled_images(tiles, [slots for row, found in prompts for slots in _images(row, found)]), output)


def _images(ids: list[int], prompt: list[range]) -> list[int]:
    """Return how many slots each image of a prompt fills, from its ids and the runs of slots in it."""
    if not prompt:
        return []
    heads = [ids[max(0, run.start - 2) : run.start] for run in prompt]
    fence, last = ids[prompt[-1].stop : prompt[-1].stop + 1], heads[-1]
    fenced = all(len(head) == 2 and head[:1] == fence for head in heads)
    images = [0]
    for run, head in zip(prompt, heads, strict=True):
        images[-1] += len(run)
        if head == last or not fenced:
            images.append(0)
    return images[:-1]
