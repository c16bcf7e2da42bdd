"""Encode the same images once, however often they are pruned, and choose once where only the rest differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from zooprune.families import Family
from zooprune.signals import TowerSignal
from zooprune.visuals import Encoded, Modality

Chosen = TypeVar("Chosen")


#: What is remembered. With every entry go the objects whose ids make its key, so that no other object takes their
#: place.
Entries = dict[tuple[Any, ...], tuple[Any, Any]]


@dataclass
class _Memory:
    signals: tuple[TowerSignal, ...]
    encodings: Entries
    choices: Entries = field(default_factory=dict)


_memory: ContextVar[_Memory | None] = ContextVar("zooprune_encodings", default=None)


@contextmanager
def remembering_encodings(signals: Sequence[TowerSignal] = (), encodings: Entries | None = None) -> Iterator[None]:
    """Encode the same tensors only once inside the block, to compare methods on them, and choose among them only once.

    Stage timings stay what they are: a session whose images were encoded before spends next to nothing on "encode".

    Parameters
    ----------
    signals : sequence of TowerSignal
        What is read of the tower at every encoding. Methods that ask for other signals encode again, so this is what
        all methods of the block ask for, if they are to share one encoding.
    encodings : dict, optional
        Where encodings are kept, so that another block finds them. Choices are forgotten at the end of the block.
    """
    token = _memory.set(_Memory(tuple(signals), {} if encodings is None else encodings))
    try:
        yield
    finally:
        _memory.reset(token)


def encode(
    family: Family, model: Any, modality: Modality, inputs: Mapping[str, Any], signals: Sequence[TowerSignal] = ()
) -> Encoded:
    """Return what the family encodes, from memory inside `remembering_encodings`."""
    memory = _memory.get()
    if memory is None:
        return family.encode(model, modality, inputs, signals)
    signals = tuple(dict.fromkeys((*memory.signals, *signals)))
    # The ids too: they tell which tiles make up an image.
    read = [model, inputs["input_ids"], *(inputs.get(name) for name in family.arguments(modality))]
    key = (modality, signals, *map(id, read))
    if key not in memory.encodings:
        memory.encodings[key] = read, family.encode(model, modality, inputs, signals)
    encoded: Encoded = memory.encodings[key][1]
    return encoded


def once(encoded: Encoded, key: tuple[Any, ...], choose: Callable[[], Chosen]) -> Chosen:
    """Return what is chosen from what was encoded, from memory inside `remembering_encodings`."""
    memory = _memory.get()
    if memory is None:
        return choose()
    key = (id(encoded), *key)
    if key not in memory.choices:
        memory.choices[key] = encoded, choose()
    chosen: Chosen = memory.choices[key][1]
    return chosen
