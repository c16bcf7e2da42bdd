"""Positions on three axes, in a runner that learns only after encoding which tokens stay.

Text has its positions from the start: an image takes as much room as all of its tokens would. The kept rows carry where
in the image they stood, as further columns, and the positions of their slots are set once the rows are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Columns that a row carries: time, row and column of its token, each as two digits that bfloat16 holds exactly.
COLUMNS, _BASE = 6, 128


def with_places(rows: Tensor, places: Tensor) -> Tensor:
    """Append where tokens stand in their image.

    Parameters
    ----------
    rows : Tensor, (k, d)
    places : Tensor of int64, (k, 3)

    Returns
    -------
    Tensor, (k, d + COLUMNS)
    """
    digits = torch.cat([places // _BASE, places % _BASE], dim=1)
    return torch.cat([rows, digits.to(rows.device, rows.dtype)], dim=1)


def without_places(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and places again: (k, d) and int64 (k, 3)."""
    high, low = rows[:, -COLUMNS:].long().split(COLUMNS // 2, dim=1)
    return rows[:, :-COLUMNS], high * _BASE + low


class PrunedMRoPE:
    """Beside a vLLM model with M-RoPE; the model comes after it among the bases."""

    config: Any
    supports_multimodal_pruning = True

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Return the positions as the model counts them for whole images, without the slots that are not there."""
        merge = self.config.vision_config.spatial_merge_size
        tokens, features, stays = list[int](), [], list[Tensor]()
        read = 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            place = feature.mm_position
            if feature.modality != "image":
                continue
            tokens += input_tokens[read : place.offset]
            stays.append(torch.ones(place.offset - read, dtype=torch.bool))
            whole = int(feature.data["image_grid_thw"].data.prod()) // merge**2
            features.append((place.offset, whole - place.length))
            tokens += [self.config.image_token_id] * whole
            stays.append(torch.arange(whole) < place.length)
            read = place.offset + place.length
        tokens += input_tokens[read:]
        stays.append(torch.ones(len(input_tokens) - read, dtype=torch.bool))
        positions, _ = super().get_mrope_input_positions(  # type: ignore[misc]
            tokens, [_moved(feature, features) for feature in mm_features]
        )
        positions = positions[:, torch.cat(stays)]
        return positions, _ahead(positions)

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Sequence[Tensor], mrope_positions: Tensor, num_computed_tokens: int
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Take the places off the rows of a chunk, and set the positions of the slots that they fill.

        The rows are those of the slots from `num_computed_tokens` on, in prompt order; a chunk may begin or end inside
        an image.
        """
        ids = torch.as_tensor(input_ids).cpu()
        positions, plain = mrope_positions.clone(), []
        image, video = ids == self.config.image_token_id, ids == self.config.video_token_id
        # The first slot of the image that each slot belongs to; something stands between any two images.
        first = torch.where(image & ~image.roll(1), torch.arange(len(ids)), 0)
        first = first.cummax(0).values
        slots = ((image | video) & (torch.arange(len(ids)) >= num_computed_tokens)).nonzero()[:, 0]
        taken = 0
        for marked in multimodal_embeddings:
            rows, places = without_places(marked)
            plain.append(rows)
            mine = slots[taken : taken + len(rows)]
            taken += len(rows)
            if len(mine) and bool(image[mine[0]]):
                start = first[mine].to(positions.device)
                base = torch.where(start > 0, positions[0, (start - 1).clamp_min(0)] + 1, 0)
                positions[:, mine.to(positions.device)] = places.T.to(positions) + base
        return plain, positions, _ahead(positions)


def _ahead(positions: Tensor) -> int:
    """Return how far positions are ahead of the number of tokens."""
    return int(positions[:, -1].max()) + 1 - positions.shape[1]


def _moved(feature: Any, images: Sequence[tuple[int, int]]) -> Any:
    """Return a feature where it stands, and as long as it is, among whole images.

    Parameters
    ----------
    feature : MultiModalFeatureSpec
    images : sequence of (int, int)
        Where images begin, and how many slots each lacks.
    """
    place = feature.mm_position
    before = sum(lacking for offset, lacking in images if offset < place.offset)
    own = sum(lacking for offset, lacking in images if offset == place.offset)
    moved = dataclasses.replace(place, offset=place.offset + before, length=place.length + own)
    return dataclasses.replace(feature, mm_position=moved)
