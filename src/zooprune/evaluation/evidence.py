"""Whether what has to be seen to answer was kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zooprune.data.examples import Region
from zooprune.reports import ImageReport
from zooprune.tokens import NEWLINE


def kept_regions(regions: Sequence[Region], images: Sequence[ImageReport], shown: int) -> dict[str, int] | None:
    """Count the regions of which at least one visual token was kept.

    A token belongs to a region when the centre of its patch lies in the box; a box that holds no centre has the patch
    that its own centre lies in.

    Parameters
    ----------
    regions : sequence of Region
    images : sequence of ImageReport
        Of one prompt, in order.
    shown : int
        How many images the prompt has.

    Returns
    -------
    dict or None
        The numbers of `regions` and of those `kept`; None without regions, or where the model reads an image as
        several, whose places in it only its family knows.
    """
    if not regions:
        return None
    # With scope="prompt" all images come as one, told apart by their frames.
    grids = [
        (image.positions[image.positions[:, 0] == frame], image.selection.mask[image.positions[:, 0] == frame])
        for image in images
        for frame in image.positions[:, 0].unique().tolist()
    ]
    if len(grids) != shown or any(len(positions[:, 1].unique()) > 1 for positions, _ in grids):
        return None
    return {"regions": len(regions), "kept": sum(_is_kept(region, *grids[region.image]) for region in regions)}


def _is_kept(region: Region, positions: Tensor, kept: Tensor) -> bool:
    place = positions[:, 2:]
    shows = place[:, 0] != NEWLINE
    size = place.max(0).values + 1
    left, top, right, bottom = region.box
    low, high = torch.tensor([top, left]), torch.tensor([bottom, right])
    centres = (place + 0.5) / size
    inside = ((centres >= low) & (centres <= high)).all(1) & shows
    if not bool(inside.any()):
        middle = ((low + high) / 2 * size).long().clamp(torch.zeros_like(size), size - 1)
        inside = (place == middle).all(1)
    return bool((inside & kept).any())
