"""The images or videos of a batch, encoded, and the prompt slots they fill. Knows no model and no method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from zooprune.averaging import averages
from zooprune.layout import Layout
from zooprune.tokens import Selection, VisualTokens

Modality = Literal["image", "video"]


@dataclass(frozen=True)
class Visual:
    """One image or video and the prompt slots it fills.

    Parameters
    ----------
    tokens : VisualTokens
    length : int
        Slots it fills, separators included.
    places : Tensor of int64, (N,)
        Which of these slots each token fills, ascending; the others hold separators, such as LLaVA-NeXT's newlines. On
        the CPU, like all that is about prompts.
    breaks : Tensor of int64, (N,)
        The slot of the separator that ends a token's row, -1 where there is none. On the CPU.
    images : Tensor of int64, (N,), optional
        Which image each token is of, where this is all images of a prompt. On the CPU.
    layout : Layout, optional
        How its tiles lie on the image, where that is known and not told by the positions of the tokens.
    """

    tokens: VisualTokens
    length: int
    places: Tensor
    breaks: Tensor
    images: Tensor | None = None
    layout: Layout | None = None

    @classmethod
    def plain(cls, tokens: VisualTokens, layout: Layout | None = None) -> Visual:
        """Return an image that has no separators."""
        places = torch.arange(len(tokens))
        return cls(tokens, len(tokens), places, torch.full_like(places, -1), layout=layout)


@dataclass(frozen=True)
class Encoded:
    """The images, or the videos, of a batch.

    Parameters
    ----------
    visuals : list of Visual
        In the order in which they appear in the prompts, row by row.
    output : ModelOutput
        What the model's own encoder returned: rows of features in `pooler_output`, and with some models more rows for
        deeper layers in `deepstack_features`.
    """

    visuals: list[Visual]
    output: Any

    def keep(self, kept: Tensor, prompts: list[int], merged: Mapping[int, Merged] | None = None) -> ModelOutput:
        """Return the encoder's output with some rows left out, in the containers that the model expects.

        Parameters
        ----------
        kept : Tensor of bool, (rows,)
            Over all rows of all images.
        prompts : list of int
            How many rows are kept for each prompt that has images.
        merged : mapping of int to Merged, optional
            What some of the kept rows become, by the row at which an image begins. Rows for deeper layers become the
            mean of those that the same token holds.
        """
        deeper = getattr(self.output, "deepstack_features", None)
        fields = {"pooler_output": _rows_that_stay(self.output.pooler_output, kept, prompts, merged or {}, deep=False)}
        if deeper is not None:
            fields["deepstack_features"] = [
                _rows_that_stay(layer, kept, prompts, merged or {}, deep=True) for layer in deeper
            ]
        return type(self.output)(**fields)


@dataclass(frozen=True)
class Merged:
    """What tokens of one image, or of all images of a prompt, become.

    Parameters
    ----------
    places : Tensor of int64, (N,)
        The row of each token, counted from where the image begins; on the CPU.
    selection : Selection
        With merged rows.
    """

    places: Tensor
    selection: Selection


def _rows_that_stay(rows: Any, kept: Tensor, prompts: list[int], merged: Mapping[int, Merged], *, deep: bool) -> Any:
    if bool(kept.all()) and not merged:
        return rows
    flat = [part.flatten(0, -2) for part in rows]
    lengths = [len(part) for part in flat]
    whole = torch.cat(flat)
    if merged:
        whole = whole.clone()
        for start, image in merged.items():
            places = (start + image.places).to(whole.device)
            chosen = image.selection
            assert chosen.merged is not None and chosen.into is not None
            into = chosen.into.to(whole.device)
            new = averages(whole[places], into, len(chosen)) if deep else chosen.merged
            whole[places[chosen.index.to(places.device)]] = new.to(whole.dtype)
    if not isinstance(rows, Tensor):
        return [part[stays] for part, stays in zip(whole.split(lengths), kept.split(lengths), strict=True)]
    # These models read one tensor; prompts that keep different numbers of rows share its first place.
    places_first = len(prompts) if len(set(prompts)) == 1 else 1
    return whole[kept].unflatten(0, (places_first, -1))


def joined(group: list[VisualTokens], axis: int) -> VisualTokens:
    """Return several as one, numbered on by frame (axis 0) or by tile (axis 1)."""
    if len(group) == 1:
        return group[0]
    positions, used = [], 0
    for tokens in group:
        numbered = tokens.positions.clone()
        numbered[:, axis] += used
        used = int(numbered[:, axis].max()) + 1
        positions.append(numbered)
    return VisualTokens(
        torch.cat([tokens.features for tokens in group]),
        torch.cat([tokens.embeddings for tokens in group]),
        group[0].projector,
        torch.cat(positions),
        {name: torch.cat([tokens.signals[name] for tokens in group]) for name in group[0].signals},
        group[0].context,
    )


def joined_visuals(group: list[Visual]) -> Visual:
    """Return all images of one prompt as one."""
    if len(group) == 1:
        return group[0]
    places, breaks, used = [], [], 0
    images = torch.arange(len(group)).repeat_interleave(torch.tensor([len(visual.tokens) for visual in group]))
    for visual in group:
        places.append(visual.places + used)
        breaks.append(torch.where(visual.breaks < 0, visual.breaks, visual.breaks + used))
        used += visual.length
    tokens = joined([visual.tokens for visual in group], axis=0)
    return Visual(tokens, used, torch.cat(places), torch.cat(breaks), images)
