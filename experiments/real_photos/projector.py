"""Give the projector its weights before the language model learns anything.

The first layer is drawn at random and scaled to the features. The second is solved by ridge regression: it should turn
the patches of a photograph into the word embedding of what the photograph shows, plus those of the words for where the
patch lies. Gradient descent on patches alone then refines both layers, without the language model and so in minutes.
The language model reads an image as words that it knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asking import COLUMNS, ROWS
from mosaics import Mosaic

#: Patches between photographs show nothing.
NOTHING = -1
#: The weight of words for places beside the name's; that of the ridge, as a share of the hidden layer's mean square.
PLACE_WEIGHT, RIDGE = 0.5, 1e-3
#: Refining: steps, patches a step, learning rate, weight decay, and how sharply similarities to names tell them apart.
REFINING_STEPS, REFINING_BATCH, REFINING_RATE, DECAY, SHARPNESS = 3000, 1024, 1e-3, 0.05, 4.0


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

    def similarities(self, visual: Tensor) -> Tensor:
        """Return how much of each kind's name there is in visual tokens (n, width), (n, kinds)."""
        middle = self.kinds.mean(0)
        return (visual.float() - middle) @ F.normalize(self.kinds - middle, dim=1).T

    def naming(self, visual: Tensor, labels: Tensor) -> float:
        """Return the share of patches of photographs that are closest to their own kind's name."""
        shown = labels != NOTHING
        return float((self.similarities(visual[shown]).argmax(1) == labels[shown]).float().mean())


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


def refine(
    projector: Any,
    words: Words,
    features: Sequence[Tensor],
    labels: Sequence[Tensor],
    targets: Sequence[Tensor],
) -> None:
    """Teach a solved projector to name patches: cross-entropy over names, plus the squared distance to the targets.

    Parameters
    ----------
    projector, features, targets
        As in `solve`; all weights learn.
    words : Words
    labels : sequence of (patches,) int tensors
        As `label_patches` returns them.
    """
    # Targets in bfloat16, since those of some thousand scenes are a gigabyte in float32.
    rows, wanted = torch.cat(list(features)), torch.cat([part.bfloat16() for part in targets])
    kinds = torch.cat(list(labels))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(projector.parameters(), weight_decay=DECAY)
    for step in range(REFINING_STEPS):
        some = torch.randint(len(rows), (REFINING_BATCH,), generator=generator)
        visual, kind = projector(rows[some].float()), kinds[some]
        named = F.cross_entropy(SHARPNESS * words.similarities(visual), kind, ignore_index=NOTHING)
        loss = named + (visual - wanted[some].float()).square().sum(1).mean()
        optimizer.param_groups[0]["lr"] = REFINING_RATE * (1 - step / REFINING_STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
