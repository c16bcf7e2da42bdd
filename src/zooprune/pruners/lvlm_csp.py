"""LVLM_CSP: a few patches first, all of them in the middle, and few again at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from zooprune.pruners.inside import InsidePruner, check_layers, check_share, layer_numbers
from zooprune.tokens import Budget

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer


@dataclass(frozen=True)
class LvlmCsp(InsidePruner):
    """Read evenly spaced visual tokens in early layers, all of them in the middle, and the best few in late layers.

    The tokens that early layers left out come back as they entered the language model ("scattering"). Late layers keep
    those that the last token of the prompt attends to most in the layer before. Tokens keep their positions.

    Source: "LVLM_CSP: Accelerating Large Vision Language Models via Clustering, Scattering, and Pruning for Reasoning
    Segmentation", arXiv 2504.10854. There is no released code, and its text names neither the layers nor the numbers of
    tokens: the values here are this project's, and published figures cannot be compared. Late layers use the attention
    of the last token, the paper that of its segmentation token. Of the paper's ways to choose the tokens of early
    layers, only even spacing is here.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves the ratios.
        With a budget, the layers in the middle take half of it, one layer at least, and all other layers read the same
        number of tokens.
    layers : tuple of int or float
        In front of which layers all tokens come back and the best few stay, counted from 0, or shares of the depth.
        With a budget, only the second counts.
    representatives, ratio : float
        The shares of the visual tokens that early and late layers read, where `keep` is None.

    Notes
    -----
        early: token i is kept if i = m ⌊N / k⌋ for some m = 0 ... k − 1
        late:  score_i = mean_h A_h(last, i)

        N: visual tokens of the image; k: how many are kept
        A_h(last, i): attention of the prompt's last token to visual token i in head h
                      of the layer before
    """

    name: ClassVar[str] = "lvlm_csp"
    source: ClassVar[str] = "arXiv 2504.10854, in part"

    layers: tuple[int | float, int | float] = (0.25, 0.5)
    representatives: float = 0.25
    ratio: float = 0.125

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(self.layers)
        if len(self.layers) != 2:
            raise ValueError(f"layers={self.layers} must be two: where tokens come back, and where few stay")
        check_share("representatives", self.representatives)
        check_share("ratio", self.ratio)

    def places(self) -> tuple[int | float, ...]:
        """Return the first layer and the two others."""
        return (0, *self.layers)

    def schedule(self, visual: int, total: int, depth: int, *, last: bool = True) -> tuple[tuple[int, int | None], ...]:
        """Return how many tokens early, middle and late layers read."""
        read = None if self.keep is None else Budget(self.keep).count(total) * depth
        if read is not None and read >= visual * depth:
            return ()
        numbers = layer_numbers(self.layers, depth)
        if depth < 3:
            raise ValueError(
                f"{self.name} needs a language model of three layers, and this has {depth}; choose another method"
            )
        back, few = (numbers[0], max(numbers[-1], numbers[0] + 1)) if numbers[0] < depth - 1 else (depth - 2, depth - 1)
        if read is None:
            return (
                (0, math.floor(visual * self.representatives)),
                (back, visual),
                (few, math.floor(visual * self.ratio)),
            )
        middle = min(max(1, read // (2 * visual)), few - 1)
        left = (read - middle * visual) / (depth - middle)
        if left < 1:
            raise ValueError(
                f"{self.name} reads all {visual} visual tokens of this image in one of {depth} layers, which is "
                f"{visual / depth:.1f} on average, and keep={self.keep} asks for {read // depth}; choose another "
                "method, or prune before the language model too"
            )
        count = math.floor(left + 0.5)
        return (0, count), (few - middle, visual), (few, count)

    def score_at(self, layer: Layer) -> Tensor:
        """Return the attention of the last token in the layer before; in front of the first, an even spread."""
        if layer.number > 0:
            return layer.before.heads.attention(layer.last)[layer.visual]
        return torch.zeros(len(layer.visual), dtype=torch.float32, device=layer.visual.device)

    def choose_at(self, scores: Tensor, layer: Layer, keep: int | None) -> Tensor:
        """Return evenly spaced tokens in front of the first layer, and the highest scoring ones later."""
        assert keep is not None
        if layer.number > 0:
            return torch.sort(scores, descending=True, stable=True).indices[:keep]
        return torch.arange(keep, device=scores.device) * (len(scores) // keep)
