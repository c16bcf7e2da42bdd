"""Qwen2-VL to Qwen3.5: images and videos of any size, four patches merged into a token, positions on three axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from zooprune.compaction import Prompt
from zooprune.families.gridded import Gridded
from zooprune.projectors import NormedMLP


class Qwen2VL(Gridded):
    """``Qwen2VLForConditionalGeneration`` and ``Qwen2_5_VLForConditionalGeneration``."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")
    title = "Qwen2-VL, Qwen2.5-VL"
    traits: ClassVar[tuple[str, ...]] = ("any size", "M-RoPE")
    positions = "original"
    consumed = ("mm_token_type_ids", "second_per_grid_ts")

    def merger(self, model: Any) -> nn.Module:
        """Return the last module of the tower."""
        module: nn.Module = model.model.visual.merger
        return module

    def tail(self, projector: Any) -> nn.Module:
        """Return the merger as norm, layer, activation, layer."""
        return two_layers(projector)

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
    unthinned = ("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration")
    traits = ("any size", "M-RoPE", "deepstack")

    def tail(self, projector: Any) -> nn.Module:
        """Return the merger as norm, layer, activation, layer."""
        first, second = projector.linear_fc1, projector.linear_fc2
        blocks = first.in_features // projector.norm.weight.shape[0]
        return NormedMLP(projector.norm, first, projector.act_fn, second, blocks)


def two_layers(merger: Any) -> NormedMLP:
    """Return a merger of Qwen2-VL's form as norm, layer, activation, layer."""
    first, activation, second = merger.mlp
    return NormedMLP(merger.ln_q, first, activation, second, first.in_features // merger.ln_q.weight.shape[0])
