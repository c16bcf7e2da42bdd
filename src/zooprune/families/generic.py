"""Any other model that hands its encoder's output on and whose projector works token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zooprune.families.base import Family
from zooprune.signals import TowerSignal
from zooprune.tokens import NEWLINE, VisualTokens
from zooprune.visuals import Encoded, Modality, Visual

#: Where transformers' models keep their projectors.
PROJECTORS = ("multi_modal_projector", "connector", "aligner", "visual.merger", "vision_projector", "projector")


class Generic(Family):
    """A class nobody wrote a family for.

    Rows of features are taken for tokens in raster order without known places, each made from the projector's input
    of the same number.
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
        if sum(len(image) for image in images) != len(read):
            raise ValueError(
                f"the projector of {type(model).__name__} reads {len(read)} rows for "
                f"{sum(len(image) for image in images)} tokens; this model needs a family of its own"
            )
        visuals = []
        for x, z in zip(read.split([len(image) for image in images]), images, strict=True):
            positions = torch.full((len(z), 4), NEWLINE, device=z.device)
            positions[:, :2] = 0
            visuals.append(Visual.plain(VisualTokens(x, z, projector, positions)))
        return Encoded(visuals, output)


def find_projector(model: Any) -> nn.Module | None:
    """Return the model's projector if it stands where projectors usually stand."""
    for path in PROJECTORS:
        module: Any = model.model
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.Module):
            return module
    return None
