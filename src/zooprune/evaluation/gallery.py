"""One question about one image with many methods; the image is encoded once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from zooprune.answering import answer
from zooprune.encoding import remembering_encodings
from zooprune.evaluation.metrics import is_right
from zooprune.evaluation.runner import grid
from zooprune.families import find_family
from zooprune.picture import Panel
from zooprune.prefill import check_signals
from zooprune.prompting import build_inputs, seen_images
from zooprune.pruners import UNPRUNED, Pruner, list_pruners, pruner_class
from zooprune.sensitivity.weight_cache import held
from zooprune.signals import tower_signals


@dataclass(frozen=True)
class Gallery:
    """What each method kept and answered.

    Parameters
    ----------
    seen : PIL.Image.Image
        The image as the model saw it.
    panels : tuple of Panel
        The unpruned model first; then methods sorted by their inputs, then by name.
    """

    seen: Image.Image
    panels: tuple[Panel, ...]


def choose(
    model: Any, methods: Sequence[str] | None, keep: int | float, seed: int
) -> tuple[tuple[Pruner, ...], dict[str, str]]:
    """Return the methods to show, the unpruned model first, and the reasons why others are left out.

    Parameters
    ----------
    model : PreTrainedModel
    methods : sequence of str, optional
        Every method if None.
    keep : int or float
    seed : int
        Seed for methods that draw random numbers.

    Raises
    ------
    ValueError
        If a method in `methods` does not work with this model, or is not made for images.
    """
    family, pruners, left_out = find_family(model), [], {}
    for setting in grid(sorted(methods or list_pruners()), [keep], [seed], sensitivity=family.sensitivity):
        pruner = setting.pruner()
        try:
            if "image" not in pruner.modalities:
                raise ValueError(f"{pruner.name} is made for videos, not for images; choose another method")
            if pruner.where != "before the language model":
                raise ValueError(f"{pruner.name} prunes inside the language model; choose another method")
            check_signals(model, family, pruner)
        except ValueError as error:
            if methods:
                raise
            left_out[pruner.name] = str(error)
        else:
            pruners.append(pruner)
    return tuple(pruners), left_out


def hang(
    model: Any,
    processor: Any,
    image: Image.Image,
    question: str,
    pruners: Iterable[Pruner],
    *,
    expected: str | None = None,
    max_new_tokens: int = 64,
) -> Gallery:
    """Ask a question with every method; the image is encoded once.

    Parameters
    ----------
    model, processor
        A supported vision-language model and its processor.
    image : PIL.Image.Image
        RGB.
    question : str
    pruners : iterable of Pruner
        From `choose`, the unpruned model first.
    expected : str, optional
        The right answer. If it is not known, the unpruned model's answer counts as right.
    max_new_tokens : int
        Length of an answer at most.
    """
    inputs = build_inputs(processor, [[image]], [question]).to(model.device, model.dtype)
    pruners = tuple(pruners)
    signals = tower_signals(name for pruner in pruners for name in pruner.reads())
    with held(model), remembering_encodings(signals):
        answered = [answer(model, processor, inputs, pruner, max_new_tokens=max_new_tokens) for pruner in pruners]
    truth = answered[0].texts[0] if expected is None else expected
    panels = [
        Panel(pruner.name, _group(pruner), reply.texts[0], is_right(reply.texts[0], [truth]), reply.report.images)
        for pruner, reply in zip(pruners, answered, strict=True)
    ]
    panels.sort(key=lambda panel: (panel.name != UNPRUNED, _GROUPS.index(panel.group)))
    return Gallery(seen_images(processor, inputs, [image])[0], tuple(panels))


_GROUPS = (
    "chosen by the image's tokens alone",
    "chosen with attention or keys of the vision tower",
    "chosen with the question",
)


def _group(pruner: Pruner) -> str:
    """Return the heading of all methods with the same kind of inputs."""
    if pruner_class(pruner.name).query_aware:
        return _GROUPS[2]
    return _GROUPS[1] if pruner.reads() else _GROUPS[0]
