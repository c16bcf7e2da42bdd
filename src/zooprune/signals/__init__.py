"""What methods may ask to see beside features and embeddings, gathered only when a method asks for it.

A method names signals in `Pruner.reads`. A family says where the modules are, a signal says what is computed from what
passed through them, and the method reads the result. No signal knows a method.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from zooprune.signals.base import PromptSignal, TowerSignal
from zooprune.signals.question import Question
from zooprune.signals.tower_attention import TowerAttention, TowerContext, TowerJointAttention, TowerReceived
from zooprune.signals.tower_keys import TowerJointKeys, TowerKeys

_TOWER: dict[str, type[TowerSignal]] = {
    "tower_attention": TowerAttention,
    "tower_received": TowerReceived,
    "tower_joint_attention": TowerJointAttention,
    "tower_context": TowerContext,
    "tower_keys": TowerKeys,
    "tower_joint_keys": TowerJointKeys,
}
_PROMPT: dict[str, type[PromptSignal]] = {"question": Question}
#: All names that a method may ask for.
SIGNALS = (*_TOWER, *_PROMPT)
#: Kind, threshold and layer of a signal of the tower.
_NAME = re.compile(r"(\w+)(?:@(\d+(?:\.\d+)?))?(?:/(-?\d+|\d*\.\d+))?")


def find_signal(name: str) -> TowerSignal | PromptSignal:
    """Return a signal by name.

    Parameters
    ----------
    name : str
        One of `SIGNALS`. Those of the tower may name a layer, "tower_attention/3" or "tower_attention/-1", or a share
        of the tower's depth, "tower_attention/0.5"; without it they are of the layer whose output the projector reads.
        The threshold of "tower_context" goes before the layer, "tower_context@35.5/-1".

    Raises
    ------
    ValueError
        If there is no such signal.
    """
    match = _NAME.fullmatch(name)
    if match is not None:
        kind, threshold, layer = match.groups()
        number = None if layer is None else float(layer) if "." in layer else int(layer)
        sound = not isinstance(number, float) or 0 < number <= 1
        if kind == "tower_context" and threshold is not None and sound:
            return TowerContext(name, number, float(threshold))
        if kind in _TOWER and threshold is None and sound:
            return _TOWER[kind](name, number)
    if name in _PROMPT:
        return _PROMPT[name](name)
    raise ValueError(f"there is no signal {name!r}; choose among {', '.join(SIGNALS)}")


def tower_signals(names: Iterable[str]) -> tuple[TowerSignal, ...]:
    """Return those of some signals that are of the tower, each once.

    Raises
    ------
    ValueError
        If there is no such signal.
    """
    return tuple(dict.fromkeys(one for one in map(find_signal, names) if isinstance(one, TowerSignal)))


__all__ = ["SIGNALS", "PromptSignal", "TowerSignal", "find_signal", "tower_signals"]
