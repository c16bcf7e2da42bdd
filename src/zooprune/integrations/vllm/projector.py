"""A plain copy of a model's projector, read from the checkpoint while vLLM loads it.

vLLM's own layers do not serve for scoring: they are split over ranks, may be quantised, and are emptied on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zooprune.integrations.vllm.configuration import RefusedError


class ProjectorCopy:
    """Takes the projector's weights out of a stream of all weights.

    It is no module, so vLLM does not look for its weights in the checkpoint.

    Parameters
    ----------
    module : Module
        Plain layers, in the model's dtype and on its device, with the names of the checkpoint.
    prefix : str
        What the names of its weights begin with in the checkpoint.
    tail : callable, optional
        Gives the part of it that works token by token, where that is not the whole.
    """

    def __init__(self, module: nn.Module, prefix: str, tail: Callable[[Any], nn.Module] | None = None) -> None:
        self.module = module.requires_grad_(False).eval()
        #: What methods score with.
        self.projector = self.module if tail is None else tail(self.module)
        self._prefix = prefix

    def listening(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass weights on, and copy those of the projector as they go by.

        Raises
        ------
        RefusedError
            If some are not there, or are packed in a form of their own.
        """
        own = dict(self.module.named_parameters())
        missing = set(own)
        for name, value in weights:
            before, found, inner = name.rpartition(self._prefix)
            if found and before in ("", "model.") and inner in own:
                if value.shape != own[inner].shape or not value.is_floating_point():
                    raise RefusedError(
                        f"zooprune: the projector's {inner} is quantised; load a checkpoint where it is not"
                    )
                with torch.no_grad():
                    own[inner].copy_(value)
                missing.discard(inner)
            yield name, value
        if missing:
            raise RefusedError(
                f"zooprune: the checkpoint lacks {self._prefix}{min(missing)}, which scoring needs; download it again"
            )
