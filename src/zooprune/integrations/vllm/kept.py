"""Which tokens of a request's images were kept, for clients that want to draw them. Knows nothing of vLLM.

A request that wants to know brings a label. The choice among its images is remembered under the label, and a client
asks for it afterwards. Nothing is remembered of other requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zooprune.reports import ImageReport
from zooprune.tokens import Selection
from zooprune.visuals import Visual

#: What the server calls in every worker; `zooprune.integrations.vllm.registration` puts it there.
METHOD = "zooprune_kept"
#: How many labels a server remembers; the oldest is forgotten first.
REMEMBERED = 256


class Memory:
    """What was kept of the images of the last requests that brought a label."""

    def __init__(self) -> None:
        self._images: OrderedDict[str, dict[int, dict[str, Any]]] = OrderedDict()

    def remember(self, label: str, number: int, visual: Visual, slots: Tensor) -> None:
        """Remember an image.

        Parameters
        ----------
        label : str
            Of the request.
        number : int
            Of the image in the request, from 0.
        visual : Visual
        slots : Tensor of int64, (k,)
            Which of its rows are kept, separators included; on the CPU.
        """
        stays = torch.zeros(visual.length, dtype=torch.bool).index_fill(0, slots, True)
        kept = stays[visual.places.cpu()].nonzero()[:, 0]
        total = len(visual.tokens)
        self._images.setdefault(label, {})[number] = {
            "image": number,
            # Lists of numbers would take several times the room.
            "kept": kept.to(torch.int32),
            "positions": visual.tokens.positions.to("cpu", torch.int32),
            "separators": [len(slots) - len(kept), visual.length - total],
        }
        self._images.move_to_end(label)
        while len(self._images) > REMEMBERED:
            self._images.popitem(last=False)

    def images(self, label: str) -> list[dict[str, Any]]:
        """Return what is remembered under a label, image by image, as JSON can hold it; nothing if it is not known."""
        images = self._images.get(label, {})
        return [
            images[number] | {name: images[number][name].tolist() for name in ("kept", "positions")}
            for number in sorted(images)
        ]


def reports(images: Sequence[Mapping[str, Any]]) -> list[ImageReport]:
    """Return a server's answer as the reports that `zooprune.picture` draws, one for each image.

    Parameters
    ----------
    images : sequence of mapping
        What the server answers under "images".
    """
    return [
        ImageReport(
            row=0,
            selection=Selection(torch.tensor(image["kept"]), len(image["positions"])),
            positions=torch.tensor(image["positions"]),
            separators=tuple(image["separators"]),
        )
        for image in images
    ]
