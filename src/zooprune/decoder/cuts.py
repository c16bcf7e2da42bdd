"""What happens to rows, positions and masks when tokens are dropped in front of a layer: tensors in, tensors out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """What was dropped in front of one layer, of every prompt of a batch.

    Parameters
    ----------
    layer : int
    source : Tensor of int64, (B, L')
        The row that each was before, -1 for padding, which is on the left. Of rows that come back after they were
        dropped, -2 less the column of the prompt.
    columns : Tensor of int64, (B, L')
        The same, counted in the prompt as it entered the language model.
    anew : bool
        Whether the rows that stay are numbered anew.
    shift : Tensor of int64, (..., B, 1), optional
        How much that lowers the positions of tokens behind the prompt, axis by axis; known after the first pass.
    back : bool
        Whether rows come back.
    """

    layer: int
    source: Tensor
    columns: Tensor
    anew: bool
    shift: Tensor | None = None
    back: bool = False

    @property
    def present(self) -> Tensor:
        """Where there is no padding: bool, (B, L')."""
        return self.columns >= 0

    @property
    def numbers(self) -> Tensor:
        """The rows counted from 0: int64, (B, L')."""
        return (self.present.long().cumsum(1) - 1).clamp_min(0)

    def on(self, device: torch.device) -> Cut:
        """Return it on another device."""
        shift = None if self.shift is None else self.shift.to(device)
        return replace(self, source=self.source.to(device), columns=self.columns.to(device), shift=shift)

    def repeated(self, copies: int) -> Cut:
        """Return that of every prompt several times, one after the other."""
        shift = None if self.shift is None else self.shift.repeat_interleave(copies, dim=-2)
        source, columns = (rows.repeat_interleave(copies, dim=0) for rows in (self.source, self.columns))
        return replace(self, source=source, columns=columns, shift=shift)


@dataclass(frozen=True)
class Thinned:
    """What became of a batch of prompts inside the language model.

    Parameters
    ----------
    width : int
        Columns of the prompts as they entered the language model.
    cuts : tuple of Cut
        By layer, ascending; on the CPU.
    """

    width: int
    cuts: tuple[Cut, ...]

    def repeated(self, copies: int) -> Thinned:
        """Return that of every prompt several times, one after the other."""
        return Thinned(self.width, tuple(cut.repeated(copies) for cut in self.cuts))


def cut_rows(layer: int, held: Tensor, stays: Tensor, anew: bool) -> Cut:
    """Return what dropping some tokens comes to.

    Parameters
    ----------
    layer : int
    held : Tensor of int64, (B, L)
        The column of the prompt that each row is of, -1 for padding.
    stays : Tensor of bool, (B, width)
        Which columns of the prompt are there from now on; no padding.
    anew : bool
    """
    lengths = stays.sum(1)
    width = int(lengths.max())
    # A stable sort by "stays" moves what is not there to the left and keeps the order of the rest.
    columns = stays.long().argsort(dim=1, stable=True)[:, -width:]
    rows = torch.arange(held.shape[1]).expand_as(held)
    # One place more than columns takes what padding says.
    places = torch.full((len(held), stays.shape[1] + 1), -1)
    places.scatter_(1, torch.where(held < 0, stays.shape[1], held), rows)
    source = places.gather(1, columns)
    source = torch.where(source < 0, -2 - columns, source)
    padding = torch.arange(width) < width - lengths[:, None]
    source, columns = source.masked_fill(padding, -1), columns.masked_fill(padding, -1)
    return Cut(layer, source, columns, anew, back=bool((source < -1).any()))


def with_tail(places: Tensor, width: int, length: int) -> Tensor:
    """Return where rows are to be found when later tokens follow the prompt, (B, L' + length - width).

    Parameters
    ----------
    places : Tensor of int64, (B, L')
        Columns of a prompt of `width`.
    width, length : int
        Of the prompt alone and with the later tokens.
    """
    tail = torch.arange(width, length, device=places.device).expand(len(places), -1)
    return torch.cat([places, tail], dim=1)


def gathered(rows: Tensor, places: Tensor) -> Tensor:
    """Return some rows of each prompt, (B, L', d); any row serves as padding."""
    return rows.gather(1, places.clamp_min(0)[:, :, None].expand(-1, -1, rows.shape[-1]))


def with_returning(rows: Tensor, places: Tensor, entered: Tensor) -> Tensor:
    """Return rows of which some come back, as they entered the language model.

    Parameters
    ----------
    rows : Tensor, (B, L', d)
        What `gathered` made.
    places : Tensor of int64, (B, L')
        See `Cut.source`.
    entered : Tensor, (B, L, d)
        The whole prompt.
    """
    return torch.where((places < -1)[:, :, None], gathered(entered, -2 - places), rows)


def gathered_mask(mask: Tensor, places: Tensor) -> Tensor:
    """Return the mask of some rows and columns, (B, 1, L', L').

    Parameters
    ----------
    mask : Tensor, (B or 1, 1, L, L)
        Bool where a row sees a column, or what is added to the scores.
    places : Tensor of int64, (B, L')
        -1 for padding, which nobody sees.
    """
    index = places.clamp_min(0)
    prompts = torch.arange(len(places), device=mask.device)[:, None, None] % len(mask)
    cut = mask[prompts, 0, index[:, :, None], index[:, None, :]][:, None]
    hidden = (places < 0)[:, None, None, :]
    return cut & ~hidden if mask.dtype == torch.bool else cut.masked_fill(hidden, torch.finfo(mask.dtype).min)


def cut_positions(positions: Tensor, cut: Cut, width: int, whole: bool) -> Tensor:
    """Return the positions of the rows that stay, (..., B, L').

    Parameters
    ----------
    positions : Tensor of int64, (..., B, L)
        Of the prompt as it entered the language model and what follows it, or of what follows it alone.
    cut : Cut
    width : int
        Columns of the prompt.
    whole : bool
        Whether the prompt is there.
    """
    if not whole:
        return positions if cut.shift is None else positions - cut.shift
    places = with_tail(cut.columns, width, positions.shape[-1]).clamp_min(0)
    kept = positions.gather(-1, places.expand(*positions.shape[:-1], -1))
    if not cut.anew:
        return kept
    tail = kept[..., cut.columns.shape[1] :]
    numbers = cut.numbers.expand(*positions.shape[:-1], -1)
    return torch.cat([numbers, tail - lowered(positions, cut, width)], dim=-1)


def lowered(positions: Tensor, cut: Cut, width: int) -> Tensor:
    """Return how much numbering anew lowers the positions behind a prompt, (..., B, 1)."""
    return positions[..., width - 1 : width] - cut.numbers[:, -1:]
