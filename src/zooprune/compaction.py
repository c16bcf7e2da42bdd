"""Cut a prompt to the visual tokens that stay. Nothing else in the library knows how.

Knows ids, masks and positions; no model, no method, no image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts, padded on the left.

    Parameters
    ----------
    input_ids, attention_mask : Tensor of int64, (B, L)
    position_ids : Tensor of int64, (B, L) or (1 + axes, B, L)
        With axes, text order comes first.
    source : Tensor of int64, (B, L)
        The column of the uncut prompt that each token stood in; -1 for padding.
    mass : Tensor of float32, (B, L), optional
        How often each token counts in attention: once, unless it is a visual token that stands in for others. None
        where that is so for all.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    source: Tensor
    mass: Tensor | None = None

    def to(self, device: torch.device) -> Prompt:
        """Return the prompts on another device."""
        return self._changed(lambda values: values.to(device))

    def repeated(self, copies: int) -> Prompt:
        """Return every prompt several times, one after the other."""
        return self._changed(lambda values: values.repeat_interleave(copies, dim=-2))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Prompt:
        return replace(self, **{name: change(values) for name, values in vars(self).items() if values is not None})

    @property
    def counts_like_text(self) -> bool:
        """Whether the positions are those that a model counts from the mask by itself."""
        if self.position_ids.ndim == 3:
            return False
        present = self.attention_mask.bool()
        return torch.equal(self.position_ids[present], (present.long().cumsum(1) - 1)[present])

    def gather(self, values: Tensor, padding: int) -> Tensor:
        """Cut something else that has one value per token of the uncut prompt, such as labels: (B, L)."""
        return values.gather(1, self.source.clamp_min(0)).masked_fill(self.source < 0, padding)


def compact(
    input_ids: Tensor,
    attention_mask: Tensor,
    slots: Tensor,
    kept: Tensor,
    *,
    original: Tensor,
    pad_token_id: int,
    axes: Tensor | None = None,
    mass: Tensor | None = None,
) -> Prompt:
    """Drop the visual tokens that are not kept and pad the batch on the left again.

    Parameters
    ----------
    input_ids, attention_mask : Tensor of int64, (B, L)
        The uncut prompts, padded on the left.
    slots : Tensor of bool, (B, L)
        Where visual tokens stand.
    kept : Tensor of bool, (number of slots,)
        Which of them stay, in prompt order.
    original : Tensor of bool, (B,)
        Whether the tokens of a prompt that stay keep the numbers they had, or are numbered anew.
    pad_token_id : int
    axes : Tensor of int64, (axes, B, L), optional
        Positions of the uncut prompts on further axes (M-RoPE).
    mass : Tensor of float32, (number of slots,), optional
        How often each visual token that stays counts in attention.

    Returns
    -------
    Prompt

    Raises
    ------
    ValueError
        If `kept` and `slots` disagree.
    """
    if len(kept) != int(slots.sum()):
        raise ValueError(f"the prompts have {int(slots.sum())} image placeholders but the images fill {len(kept)}")
    present = attention_mask.bool()
    numbers = (attention_mask.long().cumsum(1) - 1).clamp_min(0)
    if bool(kept.all()):
        source = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        whole = numbers if axes is None else torch.cat([numbers[None], axes])
        return Prompt(input_ids, attention_mask, whole, source.masked_fill(~present, -1))
    stays = present.clone()
    stays[slots] = kept
    lengths = stays.sum(1)
    width = int(lengths.max())
    # A stable sort by "stays" moves what is dropped to the left and keeps the order of the rest.
    source = stays.long().argsort(dim=1, stable=True)[:, -width:]
    source = source.masked_fill(torch.arange(width, device=source.device) < width - lengths[:, None], -1)
    mask = (source >= 0).to(attention_mask.dtype)
    cut = Prompt(input_ids, mask, numbers, source)
    anew = (mask.long().cumsum(1) - 1).clamp_min(0)
    if axes is not None:
        further = [torch.where(original[:, None], cut.gather(axis, 0), anew) for axis in axes]
        # The text axis only orders tokens; gaps in it would pass for the seams of packed prompts.
        anew = torch.stack([anew, *further])
    else:
        anew = torch.where(original[:, None], cut.gather(numbers, 0), anew)
    weighed = None
    if mass is not None:
        weighed = torch.ones(input_ids.shape, dtype=torch.float32)
        weighed[slots] = mass
        weighed = cut.gather(weighed, 1)
    return Prompt(cut.gather(input_ids, pad_token_id), mask, anew, source, weighed)
