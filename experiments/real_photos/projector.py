"""Solve the projector before any gradient step.

The first layer is drawn at random and scaled to the features. The second is solved by ridge regression: it should turn
the patches of a photograph into the word embedding of what the photograph shows, plus those of the words for where the
patch lies. The language model then reads an image as words that it knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asking import COLUMNS, ROWS
from mosaics import Mosaic

#: Patches between photographs show nothing.
NOTHING = -1
#: The weight of words for places beside the name's; that of the ridge, as a share of the hidden layer's mean square.
PLACE_WEIGHT, RIDGE = 0.5, 1e-3


def label_patches(mosaic: Mosaic, kinds: Sequence[str], patch: int) -> Tensor:
    """Return the number (patches,) of the kind that each patch shows, row by row; `NOTHING` between photographs."""
    grid = mosaic.side // patch
    labels = torch.full((grid, grid), NOTHING)
    for tile in mosaic.tiles:
        # The patches whose middle lies in the photograph.
        left, top, right, bottom = (round(edge / patch) for edge in tile.box)
        labels[top:bottom, left:right] = kinds.index(tile.kind)
    return labels.flatten()


class Words:
    """Word embeddings of kinds and of places.

    Parameters
    ----------
    model, tokenizer
    kinds : sequence of str
    """

    def __init__(self, model: Any, tokenizer: Any, kinds: Sequence[str]) -> None:
        self.table = model.get_input_embeddings().weight.detach().float()
        self.tokenizer = tokenizer
        self.kinds = torch.stack([self.embedding(kind) for kind in kinds])
        self.rows = torch.stack([self.embedding(word) for word in ROWS])
        self.columns = torch.stack([self.embedding(word) for word in COLUMNS])

    def embedding(self, text: str) -> Tensor:
        """Return the mean embedding (width,) of the tokens of a word inside a sentence."""
        ids = self.tokenizer(f" {text}", add_special_tokens=False).input_ids
        return self.table[ids].mean(0)

    def targets(self, labels: Tensor) -> Tensor:
        """Return what patches (n, grid * grid) should become, (n, grid * grid, width)."""
        grid = round(labels.shape[1] ** 0.5)
        ramp = _tent(grid)
        rows, columns = (ramp @ (words - words.mean(0)) for words in (self.rows, self.columns))
        places = (rows[:, None] + columns[None]).flatten(0, 1)
        # Whatever lies between photographs is as far from all names.
        names = torch.cat([self.kinds, self.kinds.mean(0, keepdim=True)])
        return names[labels] + PLACE_WEIGHT * places.to(names.dtype)

    def naming(self, visual: Tensor, labels: Tensor) -> float:
        """Return the share of patches of photographs that are closest to their own kind's name."""
        middle = self.kinds.mean(0)
        shown = labels != NOTHING
        names = torch.nn.functional.normalize(self.kinds - middle, dim=1)
        guess = ((visual[shown].float() - middle) @ names.T).argmax(1)
        return float((guess == labels[shown]).float().mean())


def _tent(grid: int) -> Tensor:
    """Return how much of the first, middle and last word there is in each of `grid` rows, (grid, 3)."""
    place = (torch.arange(grid) + 0.5) / grid * 2
    return (1 - (place[:, None] - torch.arange(3)).abs()).clamp(min=0)


@torch.no_grad()
def solve(projector: Any, features: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Set the weights of a projector.

    Parameters
    ----------
    projector
        LLaVA's: linear_1, act and linear_2. Weights in float32.
    features : sequence of (patches, d_vision) tensors
    targets : sequence of (patches, d_text) tensors
        What the projector should make of them.
    """
    rows = torch.cat([part.float() for part in features])
    deviation, mean = torch.std_mean(rows, 0)
    first = projector.linear_1
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(first.weight.shape, generator=generator) / rows.shape[1] ** 0.5
    first.weight.copy_(draws / deviation)
    first.bias.copy_(-first.weight @ mean)
    width = first.out_features + 1
    gram, cross = torch.zeros(width, width), torch.zeros(width, targets[0].shape[1])
    for part, wanted in zip(features, targets, strict=True):
        hidden = projector.act(first(part.float()))
        hidden = torch.cat([hidden, torch.ones(len(hidden), 1)], 1)
        gram += hidden.T @ hidden
        cross += hidden.T @ wanted
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(width)
    solved = torch.linalg.solve(gram + ridge, cross)
    projector.linear_2.weight.copy_(solved[:-1].T)
    projector.linear_2.bias.copy_(solved[-1])
