"""Attention without sinks: tokens that every word attends to, whatever they show, rank last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from zooprune.pruners.add_on import AddOn

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer


@dataclass(frozen=True)
class WithoutSinks(AddOn):
    """Rank visual tokens that are attention sinks behind all others, in the scores of another method.

    A sink is a token with a huge value in one of a few channels of what the layer at hand reads: divided by the root
    mean square of all its channels, the size of this value is above a threshold. The first token of a prompt is always
    a sink. Unless channels are given, they are those in which the first token has a huge value.

    Source: Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models", arXiv 2503.03321,
    ICLR 2025, and its code. The paper gives sinks less attention and prunes nothing; only its way to find them is here.
    It names the channels of each model: 1415 and 2533 for Llama-2-7B, 2100 and 4743 for Llama-2-13B, 458 and 2570 for
    Qwen2-VL-7B, 3584 for InternVL2-8B.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves the budget
        to the method below.
    of : InsidePruner or str
        The method below, or its name.
    channels : tuple of int, optional
        The channels in which sinks are huge; None finds them.
    threshold : float
        The size, relative to the root mean square, above which a value is huge.

    Notes
    -----
        score'_i = score_i − (max score − min score + 1), if i is a sink
        i is a sink if |h_ic| / √(mean_c h_ic²) > threshold for one of the channels c

        score_i: score of the method below
        h_ic: channel c of token i, as the layer at hand reads it
    """

    name: ClassVar[str] = "without_sinks"
    source: ClassVar[str] = "arXiv 2503.03321"

    channels: tuple[int, ...] | None = None
    threshold: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, (int, float)) or not self.threshold > 0:
            raise ValueError(f"threshold={self.threshold!r} must be a number above 0; the paper uses 20")
        if self.channels is not None and not all(type(one) is int and one >= 0 for one in self.channels):
            raise ValueError(f"channels={self.channels!r} must be numbers of channels, counted from 0")

    def corrected(self, scores: Tensor, layer: Layer) -> Tensor:
        """Return the scores, those of sinks below all others and in their old order."""
        span = scores.max() - scores.min() + 1
        return torch.where(self.sinks(layer), scores - span, scores)

    def sinks(self, layer: Layer) -> Tensor:
        """Return which of the visual tokens are sinks: bool, (n,)."""
        hidden = layer.here.hidden
        width = hidden.shape[1]
        if self.channels is not None and any(channel >= width for channel in self.channels):
            raise ValueError(f"channels={self.channels}: this language model has {width}, counted from 0")
        huge = _sizes(hidden[layer.visual]) > self.threshold
        if self.channels is None:
            return (huge & (_sizes(hidden[:1]) > self.threshold)).any(1)
        return huge[:, list(self.channels)].any(1)


def _sizes(rows: Tensor) -> Tensor:
    """Return the size of each channel, relative to the root mean square of all: (n, d)."""
    rows = rows.float()
    return rows.abs() / rows.square().mean(1, keepdim=True).sqrt()
