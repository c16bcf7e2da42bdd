"""What a model family has to say: how its images are encoded and which prompt slots they fill."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from zooprune.tokens import VisualTokens

PositionPolicy = Literal["contiguous", "original"]


@dataclass(frozen=True)
class Encoded:
    """The images of a batch, encoded.

    Parameters
    ----------
    images : list of VisualTokens
        In the order in which they appear in the prompts, row by row.
    output_type : type
        What the model's own ``get_image_features`` returns, to hand pruned features back in.
    """

    images: list[VisualTokens]
    output_type: type[ModelOutput]


class Family(ABC):
    """A group of model classes that build their prompts alike.

    A family never learns which method prunes.
    """

    #: The model class this family serves, as transformers names it in ``config.architectures``.
    architecture: str
    #: What ``positions="auto"`` means for these models.
    positions: PositionPolicy
    #: The arguments of ``generate`` and ``forward`` that ``encode`` consumes.
    image_arguments: tuple[str, ...]

    @abstractmethod
    def encode(self, model: Any, inputs: Mapping[str, Any]) -> Encoded:
        """Encode the images among `inputs` with the model's own tower and projector."""

    @abstractmethod
    def slots(self, model: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """Return where visual tokens go: bool, the shape of `input_ids`."""
