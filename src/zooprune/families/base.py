"""What a model family has to say: how its images are encoded and which prompt slots they fill."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from zooprune.tokens import VisualTokens

PositionPolicy = Literal["contiguous", "original"]
#: What a caller may ask for; "auto" is the family's own policy.
Positions = Literal["auto", "contiguous", "original"]
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
    """

    tokens: VisualTokens
    length: int
    places: Tensor
    breaks: Tensor

    @classmethod
    def plain(cls, tokens: VisualTokens) -> Visual:
        """Return an image that has no separators."""
        places = torch.arange(len(tokens))
        return cls(tokens, len(tokens), places, torch.full_like(places, -1))


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

    def cut(self, kept: Tensor, prompts: list[int]) -> ModelOutput:
        """Return the encoder's output with some rows left out, in the containers that the model expects.

        Parameters
        ----------
        kept : Tensor of bool, (rows,)
            Over all rows of all images.
        prompts : list of int
            How many rows are kept for each prompt that has images.
        """
        fields = {"pooler_output": _cut_rows(self.output.pooler_output, kept, prompts)}
        deeper = getattr(self.output, "deepstack_features", None)
        if deeper is not None:
            fields["deepstack_features"] = [_cut_rows(rows, kept, prompts) for rows in deeper]
        return type(self.output)(**fields)


def _cut_rows(rows: Any, kept: Tensor, prompts: list[int]) -> Any:
    if bool(kept.all()):
        return rows
    flat = [one.flatten(0, -2) for one in rows]
    if not isinstance(rows, Tensor):
        return [one[mine] for one, mine in zip(flat, kept.split([len(one) for one in flat]), strict=True)]
    # These models read one tensor; prompts that keep different numbers of rows share its first place.
    places = len(prompts) if len(set(prompts)) == 1 else 1
    return torch.cat(flat)[kept].unflatten(0, (places, -1))


class Family(ABC):
    """A group of model classes that build their prompts alike.

    A family never learns which method prunes.
    """

    #: The model classes this family serves, as transformers names them in ``config.architectures``.
    architectures: ClassVar[tuple[str, ...]]
    #: Names that people know these models by.
    title: ClassVar[str]
    #: How ``estimator="auto"`` finds the sensitivity of these projectors; a linear one tells no tokens apart.
    sensitivity: ClassVar[Literal["closed form", "sampled", "linear"]] = "closed form"
    #: What is particular about their prompts, in the words of the table of models.
    traits: ClassVar[tuple[str, ...]] = ()
    #: What ``positions="auto"`` means for these models.
    positions: ClassVar[PositionPolicy] = "contiguous"
    #: The arguments of ``generate`` and ``forward`` that `encode` consumes; pixels come first.
    image_arguments: ClassVar[tuple[str, ...]]
    #: The same for videos, empty where the family takes none.
    video_arguments: ClassVar[tuple[str, ...]] = ()
    #: Arguments with one value per prompt token, which are cut like the prompt.
    per_token: ClassVar[tuple[str, ...]] = ()
    #: Arguments that only serve to work out positions, which are given instead.
    consumed: ClassVar[tuple[str, ...]] = ()
    #: The number that the model's bare forward pass gives the first token.
    first_position: ClassVar[int] = 0

    @abstractmethod
    def encode(self, model: Any, modality: Modality, inputs: Mapping[str, Any]) -> Encoded:
        """Encode the images or the videos among `inputs` with the model's own tower and projector."""

    def present(self, inputs: Mapping[str, Any]) -> list[Modality]:
        """Return what there is among `inputs`."""
        modalities: tuple[Modality, ...] = ("image", "video")
        return [one for one in modalities if any(inputs.get(name) is not None for name in self.arguments(one)[:1])]

    def arguments(self, modality: Modality) -> tuple[str, ...]:
        """Return what `encode` consumes for one modality."""
        return self.image_arguments if modality == "image" else self.video_arguments

    def slots(self, model: Any, modality: Modality, input_ids: Tensor) -> Tensor:
        """Return where visual tokens go: bool, the shape of `input_ids`."""
        return input_ids == getattr(model.config, f"{self.placeholder(modality)}_token_id")

    def placeholder(self, modality: Modality) -> Modality:
        """Return whose placeholder stands in the prompts for a modality, and by what name the model takes its rows."""
        return modality

    def axes(self, model: Any, inputs: Mapping[str, Any], attention_mask: Tensor) -> Tensor | None:
        """Return the positions of the uncut prompts on every axis, (axes, B, L), or None where text order is all.

        The mask is on the CPU, and so are the positions.
        """
        return None

    def run(
        self, model: Any, modality: Modality, inputs: Mapping[str, Any], module: nn.Module, **hook: Any
    ) -> tuple[Any, Tensor]:
        """Encode, and return the encoder's output and what `module` read on the way."""
        read: list[Tensor] = []
        handle = module.register_forward_hook(lambda _module, args, _output: read.append(args[0].detach()))
        given = {name: inputs[name] for name in self.arguments(modality) if inputs.get(name) is not None}
        try:
            output = getattr(model.model, f"get_{modality}_features")(**given, return_dict=True)
        finally:
            handle.remove()
        return output, torch.cat([rows.flatten(0, -2) for rows in read])

    @contextmanager
    def noting(self, module: nn.Module) -> Iterator[list[Tensor]]:
        """Collect what a module gives while the block runs, as rows."""
        given: list[Tensor] = []
        handle = module.register_forward_hook(lambda _module, _args, out: given.append(out.detach().flatten(0, -2)))
        try:
            yield given
        finally:
            handle.remove()

    def tail(self, projector: Any) -> nn.Module:
        """Return the part of the projector that works token by token, after any shuffling or pooling."""
        return projector

    def token_wise(self, projector: nn.Module) -> nn.Module:
        """Return `tail`, the same object for as long as the projector lives.

        What is worked out about it, such as the closed form of its sensitivity, is kept with it.
        """
        if projector not in _tails:
            tail = self.tail(projector)
            if tail is projector:
                return projector
            _tails[projector] = tail
        return _tails[projector]


_tails: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def grid_positions(rows: int, columns: int, *, frames: int = 1, tile: int = 0, device: torch.device) -> Tensor:
    """Return frame, tile, row and column of a raster of tokens, (frames * rows * columns, 4)."""
    lines = [torch.arange(length, device=device) for length in (frames, rows, columns)]
    frame, row, column = torch.cartesian_prod(*lines).unbind(-1)
    return torch.stack([frame, torch.full_like(frame, tile), row, column], dim=-1)


def square_tiles(
    features: Tensor, embeddings: Tensor, projector: Any, hidden: Tensor | None = None
) -> list[VisualTokens]:
    """Return a VisualTokens for each tile of a tower whose tiles are square.

    Parameters
    ----------
    features : Tensor, (tiles * N, d_vision)
    embeddings : Tensor, (tiles, N, d_text)
    projector : callable
    hidden : Tensor, (tiles * N, d_hidden), optional
    """
    total = embeddings.shape[1]
    side = math.isqrt(total)
    positions = grid_positions(side, side, device=embeddings.device)
    given = [None] * len(embeddings) if hidden is None else hidden.split(total)
    return [
        VisualTokens(x, z, projector, positions, h)
        for x, z, h in zip(features.split(total), embeddings, given, strict=True)
    ]


def runs(slots: Tensor) -> list[list[range]]:
    """Return, for every prompt, the runs of slots that follow each other without a break.

    Parameters
    ----------
    slots : Tensor of bool, (B, L)
    """
    prompts = []
    for row in slots.tolist():
        stretches = [list(run) for _, run in groupby(range(len(row)), key=row.__getitem__)]
        prompts.append([range(run[0], run[-1] + 1) for run in stretches if row[run[0]]])
    return prompts


def tiled_images(tiles: list[VisualTokens], slots: list[int]) -> list[Visual]:
    """Join tiles to images, numbered by tile.

    Parameters
    ----------
    tiles : list of VisualTokens
        All of one size.
    slots : list of int
        How many slots each image fills.

    Raises
    ------
    ValueError
        If an image is not a whole number of tiles, or there are more or fewer tiles than slots for them.
    """
    size = len(tiles[0])
    if any(count % size for count in slots) or sum(slots) != size * len(tiles):
        found = ", ".join(map(str, slots)) or "no"
        raise ValueError(
            f"the prompts have images of {found} placeholders, which {len(tiles)} tiles of {size} do not fill; "
            "pass the ids and pixels of the same processor call"
        )
    bounds = accumulate((count // size for count in slots), initial=0)
    return [Visual.plain(joined(tiles[start:end], axis=1)) for start, end in pairwise(bounds)]


def joined(group: list[VisualTokens], axis: int) -> VisualTokens:
    """Return several as one, numbered on by frame (axis 0) or by tile (axis 1)."""
    if len(group) == 1:
        return group[0]
    positions, used = [], 0
    for tokens in group:
        mine = tokens.positions.clone()
        mine[:, axis] += used
        used = int(mine[:, axis].max()) + 1
        positions.append(mine)
    return VisualTokens(
        torch.cat([tokens.features for tokens in group]),
        torch.cat([tokens.embeddings for tokens in group]),
        group[0].projector,
        torch.cat(positions),
        None
        if group[0].hidden is None
        else torch.cat([tokens.hidden for tokens in group if tokens.hidden is not None]),
    )


def joined_visuals(group: list[Visual]) -> Visual:
    """Return all images of one prompt as one."""
    if len(group) == 1:
        return group[0]
    places, breaks, used = [], [], 0
    for visual in group:
        places.append(visual.places + used)
        breaks.append(torch.where(visual.breaks < 0, visual.breaks, visual.breaks + used))
        used += visual.length
    return Visual(joined([visual.tokens for visual in group], axis=0), used, torch.cat(places), torch.cat(breaks))
