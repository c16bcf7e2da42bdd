"""Attention Debiasing: attention without its bias towards late tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from zooprune.pruners.add_on import AddOn

if TYPE_CHECKING:
    from zooprune.decoder.layer import Layer


@dataclass(frozen=True)
class Debiased(AddOn):
    """Divide the scores of another method by the attention that a token's place in the image attracts on average.

    A language model attends more to tokens that are nearer to the text, whatever they show. Mean attention over many
    images follows exp(slope x) along the image, where x is a token's place from 0 to 1. Dividing by it leaves the
    attention that the token itself attracts. Only scores of the first stage are divided.

    Source: "Attention Debiasing for Token Pruning in Vision-Language Models", arXiv 2508.17807, and its files of
    weights. They have a slope for each method and data set, for PyramidDrop from 1.4 to 2.3 with a mean of 1.87, which
    is the default; `fitted_slope` finds that of another model. Its second part, which drops padding, is not part of
    this method.

    Parameters
    ----------
    keep : int, float or None
        Visual tokens per image that a layer reads on average, or a share of the image's tokens; None leaves the budget
        to the method below.
    of : InsidePruner or str
        The method below, or its name.
    slope : float
        How steeply mean attention rises along the image.

    Notes
    -----
        score'_i = score_i · exp(−slope · x_i)

        score_i: score of the method below, at its first stage
        x_i: place of token i among those of its image that entered the language model,
             from 0 for the first, divided by how many they are
    """

    name: ClassVar[str] = "debiased"
    source: ClassVar[str] = "arXiv 2508.17807"

    slope: float = 1.87

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.slope, bool) or not isinstance(self.slope, (int, float)):
            raise TypeError(f"slope must be a number, not {type(self.slope).__name__}")
        if not abs(self.slope) < float("inf"):
            raise ValueError(f"slope={self.slope} must be finite; the paper has 1.3 to 2.7")

    def corrected(self, scores: Tensor, layer: Layer) -> Tensor:
        """Return the scores divided by the curve."""
        if layer.stage > 0:
            return scores
        return scores * (-self.slope * layer.index / layer.entered).exp()


def fitted_slope(attention: Iterable[Tensor]) -> float:
    """Return the slope with which exp(slope x) follows mean attention best.

    Parameters
    ----------
    attention : iterable of Tensor, (n,)
        What `score_at` gave for images of the same size, all tokens of which were there.

    Returns
    -------
    float
        The least squares fit to the logarithm of the mean.

    Raises
    ------
    ValueError
        If there is nothing to fit, or some token has no attention at all.
    """
    rows = [row.double().cpu() for row in attention]
    if not rows or len(rows[0]) < 2 or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError(
            "the slope is fitted to images with the same number of tokens, two or more; give images of one size"
        )
    mean = torch.stack(rows).mean(0)
    if not bool((mean > 0).all()):
        raise ValueError("some token gets no attention in any image, so no exponential fits it; give more images")
    place = torch.arange(len(mean), dtype=torch.float64) / len(mean)
    place = place - place.mean()
    return float((place * mean.log()).sum() / place.square().sum())
