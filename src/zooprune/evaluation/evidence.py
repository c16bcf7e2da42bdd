"""Count how many of the regions that an answer depends on were kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zooprune.data.examples import Region
from zooprune.reports import ImageReport
from zooprune.tokens import NEWLINE


def kept_regions(regions: Sequence[Region], images: Sequence[ImageReport], shown: int) -> dict[str, int] | None:
    """Count the regions of which at least one visual token was kept.

    A token belongs to a region if the centre of its patch lies in the box. A box without any such centre has the patch
    that holds the centre of the box.

    Parameters
    ----------
    regions : sequence of Region
    images : sequence of ImageReport
        The reports of one prompt, in order.
    shown : int
        The number of images in the prompt.

    Returns
    -------
    dict or None
        The numbers of `regions` and of `kept` regions. None if there are no regions, or if the model cuts an image into
        tiles, whose places in the image only the model's family knows.
    """
    if not regions:
        return None
    # With scope="prompt", one report holds all images, which differ in their frames.
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
