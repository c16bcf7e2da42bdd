"""Images and videos of any size as rows of patches with a grid each; blocks of patches become a token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zooprune.families.base import Family
from zooprune.families.tiling import grid_positions
from zooprune.signals import TowerSignal
from zooprune.tokens import VisualTokens
from zooprune.visuals import Encoded, Modality, Visual

_DIGITS, _BASE = 4, 128


class Gridded(Family):
    """What Qwen's models, GLM's and those built like them have in common.

    The processor puts the patches of a token one after the other.
    """

    traits: ClassVar[tuple[str, ...]] = ("any size",)
    tower = "visual"
    image_arguments: ClassVar[tuple[str, ...]] = ("pixel_values", "image_grid_thw")
    video_arguments: ClassVar[tuple[str, ...]] = ("pixel_values_videos", "video_grid_thw")
    consumed: ClassVar[tuple[str, ...]] = ("mm_token_type_ids",)

    @abstractmethod
    def merger(self, model: Any) -> nn.Module:
        """Return the module that makes a token of a block of patches."""

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode; the merger may run in another order than the one its output comes in, and is followed there."""
        merger = self.merger(model)
        tail = self.token_wise(merger)
        # Numbers written beside the merger's output go wherever it goes.
        output, seen, patches = self.forward(
            model, modality, inputs, {"projector": merger}, signals,
            change={"projector": lambda out: torch.cat([out, _numbers(out)], dim=-1)},
        )  # fmt: skip
        width = output.pooler_output[0].shape[-1] - _DIGITS
        order = torch.cat([rows[:, width:] for rows in output.pooler_output])
        output.pooler_output = [rows[:, :width] for rows in output.pooler_output]
        numbers = _read_numbers(order)
        features = seen["projector"].read.view(len(order), -1)[numbers]
        # Patches go through the tower in the order of the merger, those of a token one after the other.
        means = {
            name: values.reshape(len(order), -1, values.shape[-1]).mean(1)[numbers] for name, values in patches.items()
        }
        merge = model.model.get_submodule(self.tower).spatial_merge_size
        grids = inputs[self.arguments(modality)[1]].tolist()
        visuals = []
        lengths = [len(rows) for rows in output.pooler_output]
        given = {name: values.split(lengths) for name, values in means.items()}
        for number, (x, z, (frames, rows, columns)) in enumerate(
            zip(features.split(lengths), output.pooler_output, grids, strict=True)
        ):
            positions = grid_positions(rows // merge, columns // merge, frames=frames, device=z.device)
            own = {name: values[number] for name, values in given.items()}
            visuals.append(Visual.plain(VisualTokens(x, z, tail, positions, own)))
        return Encoded(visuals, output)


def _numbers(rows: Tensor) -> Tensor:
    """Return the number of every row in digits that half precision holds exactly: (rows, digits)."""
    number = torch.arange(len(rows), device=rows.device)
    return torch.stack([number // _BASE**place % _BASE for place in range(_DIGITS)], dim=-1).to(rows.dtype)


def _read_numbers(digits: Tensor) -> Tensor:
    powers = torch.tensor([_BASE**place for place in range(_DIGITS)], device=digits.device)
    return (digits.long() * powers).sum(-1)
