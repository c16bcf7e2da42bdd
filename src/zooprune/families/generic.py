"""Any other model that hands its encoder's output on and whose projector works token by token."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from zooprune.families.base import Family
from zooprune.families.tiling import runs, tiled_images
from zooprune.signals import TowerSignal
from zooprune.tokens import NEWLINE, VisualTokens
from zooprune.visuals import Encoded, Modality, Visual

#: Where transformers' models keep their projectors.
PROJECTORS = ("multi_modal_projector", "connector", "aligner", "visual.merger", "vision_projector", "projector")


#: Parameters of an encoder that need not be passed, because the model's configuration holds them.
CONFIGURED = ("vision_feature_layer", "vision_feature_select_strategy")
#: In the names of modules that mix tokens.
MIXING = ("Attention", "Conv", "Pool", "Perceiver", "Resampler")


class Generic(Family):
    """A class nobody wrote a family for.

    Rows of features are taken for tokens in raster order without known places, each made from the projector's input
    of the same number. Where all images come as equal rows of one tensor, these may be tiles: those whose placeholders
    follow each other without a break are one image.
    """

    architectures = ()
    title = "any other with a token-wise projector"
    sensitivity = "sampled"
    gives_tower_signals = False
    image_arguments = ("pixel_values", "image_sizes", "pixel_attention_mask")

    def encode(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
    ) -> Encoded:
        """Encode the images, and refuse if the projector turns out not to work token by token."""
        projector = find_projector(model)
        assert projector is not None
        output, seen, _ = self.forward(model, modality, inputs, {"projector": projector})
        read = seen["projector"].read
        images = list(output.pooler_output)
        lengths = [len(image) for image in images]
        if sum(lengths) != len(read):
            raise ValueError(
                f"the projector of {type(model).__name__} reads {len(read)} rows for {sum(lengths)} tokens; "
                "this model needs a family of its own"
            )
        tokens = []
        for x, z in zip(read.split(lengths), images, strict=True):
            positions = torch.full((len(z), 4), NEWLINE, device=z.device)
            positions[:, :2] = 0
            tokens.append(VisualTokens(x, z, projector, positions))
        if isinstance(output.pooler_output, Tensor):
            prompts = runs(self.slots(model, modality, inputs["input_ids"]))
            slots = [len(run) for prompt in prompts for run in prompt]
            return Encoded(tiled_images(tokens, slots, repeat(None)), output)
        return Encoded([Visual.plain(image) for image in tokens], output)


def lacking(model: Any) -> list[str]:
    """Return what a model lacks to be served without a family of its own."""
    missing = []
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        missing.append("a forward pass that takes mm_encoder_outputs")
    inner: Any = getattr(model, "model", None)
    if not hasattr(inner, "get_image_features"):
        missing.append("get_image_features")
    else:
        names = inspect.signature(inner.get_image_features).parameters
        unknown = [name for name in names if name not in (*Generic.image_arguments, *CONFIGURED, "kwargs")]
        if unknown:
            missing.append(f"a family of its own that reads {', '.join(unknown)}")
        projector = find_projector(model)
        if projector is None:
            missing.append("a projector in a usual place")
        elif any(part in type(module).__name__ for module in projector.modules() for part in MIXING):
            missing.append("a projector that works token by token")
    if hasattr(inner, "get_rope_index"):
        missing.append("positions that follow the text's order")
    if not hasattr(model.config, "image_token_id"):
        missing.append("an image_token_id in its configuration")
    return missing


def find_projector(model: Any) -> nn.Module | None:
    """Return the model's projector if it stands where projectors usually stand."""
    for path in PROJECTORS:
        module: Any = model.model
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.Module):
            return module
    return None
