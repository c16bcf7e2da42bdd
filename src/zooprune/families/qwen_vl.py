"""Qwen2-VL to Qwen3.5: images and videos of any size, four patches merged into a token, positions on three axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zooprune.compaction import Prompt
from zooprune.families.base import Family
from zooprune.families.tiling import grid_positions
from zooprune.projectors import NormedMLP
from zooprune.signals import TowerSignal
from zooprune.tokens import VisualTokens
from zooprune.visuals import Encoded, Modality, Visual

_DIGITS, _BASE = 4, 128


class Qwen2VL(Family):
    """``Qwen2VLForConditionalGeneration`` and ``Qwen2_5_VLForConditionalGeneration``."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")
    title = "Qwen2-VL, Qwen2.5-VL"
    traits: ClassVar[tuple[str, ...]] = ("any size", "M-RoPE")
    positions = "original"
    tower = "visual"
    image_arguments = ("pixel_values", "image_grid_thw")
    video_arguments: ClassVar[tuple[str, ...]] = ("pixel_values_videos", "video_grid_thw")
    consumed = ("mm_token_type_ids", "second_per_grid_ts")

    def tail(self, projector: Any) -> nn.Module:
        """Return the merger as norm, layer, activation, layer."""
        first, activation, second = projector.mlp
        blocks = first.in_features // projector.ln_q.weight.shape[0]
        return NormedMLP(projector.ln_q, first, activation, second, blocks)

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode; the merger may run in another order than the one its output comes in, and is followed there."""
        merger = model.model.visual.merger
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
        merge = model.model.visual.spatial_merge_size
        grids = inputs[self.arguments(modality)[1]].tolist()
        visuals = []
        lengths = [len(rows) for rows in output.pooler_output]
        given = {name: values.split(lengths) for name, values in means.items()}
        for number, (x, z, (frames, rows, columns)) in enumerate(
            zip(features.split(lengths), output.pooler_output, grids, strict=True)
        ):
            positions = grid_positions(rows // merge, columns // merge, frames=frames, device=z.device)
            mine = {name: values[number] for name, values in given.items()}
            visuals.append(Visual.plain(VisualTokens(x, z, tail, positions, mine)))
        return Encoded(visuals, output)

    def axes(self, model: Any, inputs: Mapping[str, Any], attention_mask: Tensor) -> Tensor | None:
        """Return time, row and column of every prompt token, as the model itself counts them."""
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
        given = {name: inputs[name] for name in names if inputs.get(name) is not None}
        if "mm_token_type_ids" not in given:
            raise ValueError("no mm_token_type_ids; pass all that the processor returned")
        # On the host, which would have to wait for the device at every step of it.
        given = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in given.items()}
        positions, _ = model.model.get_rope_index(inputs["input_ids"].cpu(), attention_mask=attention_mask, **given)
        return positions

    def count_on(self, model: Any, prompt: Prompt) -> None:
        """Set how far positions are ahead of the number of tokens, padding included."""
        last = prompt.position_ids[1:, :, -1].amax(0)
        model.model.rope_deltas = (last + 1 - prompt.input_ids.shape[1])[:, None]


class Qwen3VL(Qwen2VL):
    """``Qwen3VLForConditionalGeneration``, Qwen3.5 and the mixtures of experts of both.

    Deeper layers of the tower are added inside the language model (deepstack) and are cut alike.
    """

    architectures = (
        "Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration", "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration",
    )  # fmt: skip
    title = "Qwen3-VL, Qwen3.5, and their MoE"
    traits = ("any size", "M-RoPE", "deepstack")

    def tail(self, projector: Any) -> nn.Module:
        """Return the merger as norm, layer, activation, layer."""
        first, second = projector.linear_fc1, projector.linear_fc2
        blocks = first.in_features // projector.norm.weight.shape[0]
        return NormedMLP(projector.norm, first, projector.act_fn, second, blocks)


def _numbers(rows: Tensor) -> Tensor:
    """Return the number of every row in digits that half precision holds exactly: (rows, digits)."""
    number = torch.arange(len(rows), device=rows.device)
    return torch.stack([number // _BASE**place % _BASE for place in range(_DIGITS)], dim=-1).to(rows.dtype)


def _read_numbers(digits: Tensor) -> Tensor:
    powers = torch.tensor([_BASE**place for place in range(_DIGITS)], device=digits.device)
    return (digits.long() * powers).sum(-1)
