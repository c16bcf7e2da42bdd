"""The two kinds of signals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor


class Attention(Protocol):
    """What passed through an attention module, call by call."""

    queries: list[Tensor]
    keys: list[Tensor]
    masks: list[Tensor | None]
    scalings: list[float]


@dataclass(frozen=True)
class TowerSignal(ABC):
    """Something about each patch, from one attention layer of the vision tower.

    Parameters
    ----------
    name : str
        As the method asked for it.
    layer : int, float or None
        Which layer, from the end if negative. A float is a share of the tower's depth, so that 0.375 is the ninth of 24
        layers. None is the layer whose output the projector reads.
    """

    #: What it is about, for tables.
    kind: ClassVar[str]

    name: str
    layer: int | float | None = None

    @abstractmethod
    def patches(self, seen: Attention, *, class_token: bool) -> Tensor:
        """Return the signal of every patch: float32, (sequences, patches, channels).

        Parameters
        ----------
        seen : Attention
        class_token : bool
            Whether the first token of a sequence is a class token, which is no patch.
        """


@dataclass(frozen=True)
class PromptSignal(ABC):
    """Something about a whole prompt.

    Parameters
    ----------
    name : str
        As the method asked for it.
    """

    #: What it is about, for tables.
    kind: ClassVar[str]

    name: str

    @abstractmethod
    def of(self, model: Any, text_ids: Tensor) -> Tensor:
        """Return the signal of one prompt, given the ids of its text, (T,), on the inputs' device."""
