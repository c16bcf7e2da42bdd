"""Smoothing of what is known of each token over its neighbours in the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zooprune.precision import exact_float32


@torch.no_grad()
@exact_float32()
def smooth(values: Tensor, positions: Tensor) -> Tensor:
    """Average values over neighbours in the image with a Gaussian of 3 x 3 cells whose deviation is one cell.

    Cells are reflected at the border of the image, without the border itself repeated.

    Parameters
    ----------
    values : Tensor, (N,)
    positions : Tensor of int64, (N, 4)
        Frame, tile, row and column. Neighbours share frame and tile. A token with a negative row or column has no
        neighbour.

    Returns
    -------
    Tensor of float32, (N,)
        Where a neighbour is missing, the token itself takes its place.
    """
    values, positions = values.float(), positions.to(values.device)
    frame, tile, row, column = positions.unbind(-1)
    shown = (row >= 0) & (column >= 0)
    last_frame, last_tile, last_row, last_column = positions.amax(0).clamp_min(0).tolist()
    total = (last_frame + 1) * (last_tile + 1) * (last_row + 1) * (last_column + 1)

    def cell(down: int, right: int) -> Tensor:
        """Return the cell beside each token, and `total` where there is none."""
        beside = _reflected(row + down, last_row), _reflected(column + right, last_column)
        place = ((frame * (last_tile + 1) + tile) * (last_row + 1) + beside[0]) * (last_column + 1) + beside[1]
        return place.where(shown & (beside[0] >= 0) & (beside[1] >= 0), total)

    own = torch.arange(len(values), device=values.device)
    holder = torch.full((total + 1,), -1, device=values.device).index_put((cell(0, 0),), own)
    holder[total] = -1
    mean, weights = torch.zeros_like(values), 0.0
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            found = holder[cell(down, right)]
            weight = math.exp(-(down**2 + right**2) / 2)
            mean = mean + weight * values[found.where(found >= 0, own)]
            weights += weight
    return mean / weights


def _reflected(place: Tensor, last: int) -> Tensor:
    """Return places one beyond the first or last one as the place before it; negative where there is none."""
    return last - (last - place.abs()).abs()
