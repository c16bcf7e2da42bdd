"""Which rows of an image stay, chosen inside vLLM's encoder call, which must never fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tp_group
from vllm.logger import init_logger

from zooprune.averaging import averages
from zooprune.budgeting import spend
from zooprune.families.tiling import grid_positions
from zooprune.integrations.vllm.configuration import KEY, Pruning, RefusedError
from zooprune.integrations.vllm.kept import Memory
from zooprune.integrations.vllm.processing import Ask
from zooprune.integrations.vllm.projector import ProjectorCopy
from zooprune.precision import all_finite
from zooprune.sensitivity.weight_cache import unchanged
from zooprune.standing_in import stand_in
from zooprune.tokens import VisualTokens
from zooprune.visuals import Visual

logger = init_logger(__name__)


@dataclass(frozen=True)
class Chosen:
    """What stays of one image.

    Parameters
    ----------
    slots : Tensor of int64, (k,)
        Ascending, among all rows of the image; on the CPU.
    rows : Tensor, (k, d)
    """

    slots: Tensor
    rows: Tensor


class Chooser:
    """Chooses the rows of images for one model.

    Parameters
    ----------
    pruning : Pruning
    copy : ProjectorCopy
    embed : callable
        Gives the language model's embeddings of ids.
    """

    def __init__(self, pruning: Pruning, copy: ProjectorCopy, embed: Callable[[Tensor], Tensor]) -> None:
        self.pruning, self.copy, self._embed = pruning, copy, embed
        self.memory = Memory()

    @classmethod
    def of(cls, vllm_config: Any, model: Any, copy: ProjectorCopy) -> Chooser:
        """Return the chooser of a model that is being built."""
        pruning = Pruning.read(getattr(vllm_config.model_config.hf_config, KEY))
        return cls(pruning, copy, model.language_model.embed_input_ids)

    def prove(self, width: int, text_width: int) -> None:
        """Choose once among made-up tokens, so that a method that cannot work here stops the server at its start.

        Parameters
        ----------
        width, text_width : int
            Of features and of embeddings.

        Raises
        ------
        RefusedError
            If choosing fails.
        """
        weight = next(self.copy.module.parameters())
        draw = torch.Generator().manual_seed(0)
        features, embeddings = (
            torch.randn(16, size, generator=draw).to(weight.device, weight.dtype) for size in (width, text_width)
        )
        grid = grid_positions(4, 4, device=weight.device)
        context = {"question": embeddings[:3]} if self.pruning.reads_question else {}
        tokens = VisualTokens(features, embeddings, self.copy.projector, grid, context=context)
        try:
            self._choose(Visual.plain(tokens), embeddings, 4)
        except Exception as error:
            raise RefusedError(
                f"zooprune: method {self.pruning.method} does not work with this model: {error}"
            ) from error

    def choose(self, visual: Visual, rows: Tensor, ask: Ask) -> Chosen:
        """Choose what stays of one image. Never raises, since vLLM would not survive it.

        Where choosing fails, which the log then tells, evenly spaced rows stay.

        Parameters
        ----------
        visual : Visual
        rows : Tensor, (visual.length, d)
            What the language model reads, separators and deeper layers included; of which the first columns are the
            embeddings.
        ask : Ask
        """
        chosen = self._chosen(visual, rows, ask)
        if ask.label is not None:
            number, *label = ask.label.tolist()
            self.memory.remember(bytes(label).decode(), number, visual, chosen.slots)
        return chosen

    def _chosen(self, visual: Visual, rows: Tensor, ask: Ask) -> Chosen:
        keep = ask.keep
        if keep >= len(rows):
            return Chosen(torch.arange(len(rows)), rows)
        if ask.question is not None:
            # Outside of what may fail, as ranks work it out together.
            context = {"question": self._embed(ask.question.to(rows.device))}
            visual = replace(visual, tokens=replace(visual.tokens, context=context))
        try:
            chosen = self._choose(visual, rows, keep)
        except Exception:
            logger.exception("zooprune: choosing failed, and evenly spaced tokens of an image are kept")
            slots = torch.arange(keep) * len(rows) // keep
            chosen = Chosen(slots, rows[slots.to(rows.device)])
        return _agreed(chosen)

    def _choose(self, visual: Visual, rows: Tensor, keep: int) -> Chosen:
        embeddings = visual.tokens.embeddings
        if not bool(all_finite(embeddings) & all_finite(visual.tokens.features)):
            raise ValueError("the image gives NaN or infinite features")
        with unchanged():
            selection, stays = spend(self.pruning.pruner(keep), visual, self.pruning.policy)
            selection = stand_in(selection, visual, self.pruning.policy)
        slots = stays.nonzero()[:, 0]
        if len(slots) != keep:
            raise ValueError(f"{len(slots)} rows were chosen for {keep} placeholders")
        if selection.merged is not None:
            assert selection.into is not None
            places = visual.places.to(rows.device)
            kept = places[selection.index.to(rows.device)]
            # Rows for deeper layers become the mean of those that the same token holds.
            merged = averages(rows[places], selection.into, len(selection))
            merged[:, : embeddings.shape[1]] = selection.merged.float()
            rows = rows.clone()
            rows[kept] = merged.to(rows.dtype)
        return Chosen(slots, rows[slots.to(rows.device)])


def _agreed(chosen: Chosen) -> Chosen:
    """Return what the first of several ranks has chosen: rounding could tip a tie the other way on another."""
    group = get_tp_group()
    if group.world_size == 1:
        return chosen
    slots = group.broadcast(chosen.slots.to(chosen.rows.device), src=0)
    return replace(chosen, slots=slots.cpu(), rows=group.broadcast(chosen.rows.contiguous(), src=0))


def at_once(vllm_config: Any, total: int) -> int:
    """Return how many images are encoded together: as many as vLLM would without pruning.

    vLLM fills its encoder's budget with placeholders, of which a pruned image has few.

    Parameters
    ----------
    vllm_config : VllmConfig
    total : int
        Rows of the largest image before pruning.
    """
    return max(1, vllm_config.scheduler_config.max_num_encoder_input_tokens // total)


def parts(values: Any, asks: Sequence[Ask], count: int) -> list[tuple[Any, Sequence[Ask]]]:
    """Return values, one for each image, in portions of at most `count`, each with what is asked for them."""
    return [(values[start : start + count], asks[start : start + count]) for start in range(0, len(asks), count)]
