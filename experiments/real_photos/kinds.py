"""What the photographs show: a plain English name for each folder of Caltech-101 that is used, and what is held out.

Of 99 classes these are the ones that the tower tells apart best when they are small: a linear probe on patches of
training photographs, fitted on one half and asked about the other, confuses them least. Two folders of water lilies
share a name. Names are short words that the language model knows, most of them one token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Split = Literal["train", "test"]

#: The folders that are used, and what they show.
NAMES = {
    "Leopards": "leopard",
    "Motorbikes": "motorcycle",
    "accordion": "accordion",
    "airplanes": "airplane",
    "barrel": "barrel",
    "binocular": "binoculars",
    "car_side": "car",
    "dollar_bill": "dollar",
    "grand_piano": "piano",
    "headphone": "headphones",
    "lotus": "lotus",
    "menorah": "menorah",
    "metronome": "metronome",
    "minaret": "tower",
    "pagoda": "temple",
    "pizza": "pizza",
    "pyramid": "pyramid",
    "soccer_ball": "ball",
    "stop_sign": "sign",
    "strawberry": "strawberry",
    "sunflower": "sunflower",
    "tick": "tick",
    "trilobite": "fossil",
    "water_lilly": "lotus",
    "yin_yang": "symbol",
}
#: One photograph in so many is only seen in tests, and in so many kinds is never asked about in training for a task.
TEST_SHARE, NEW_SHARE = 5, 10
SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


def find_photographs(folder: Path, split: Split) -> dict[str, list[Path]]:
    """Return the photographs of each kind, kinds and photographs in alphabetical order.

    Parameters
    ----------
    folder : Path
        One folder per class, as Caltech-101 is laid out; only those in `NAMES` are used.
    split : {"train", "test"}
        A fifth of the photographs of a folder, those whose names have the lowest digests, belong to the test.

    Raises
    ------
    ValueError
        If a class has no photograph.
    """
    found: dict[str, list[Path]] = {}
    for label, name in NAMES.items():
        paths = sorted((path for path in (folder / label).glob("*") if path.suffix.lower() in SUFFIXES), key=_digest)
        if not paths:
            raise ValueError(f"{folder} holds no photographs of {label}; give the folder that Caltech-101 lies in")
        held_out = -(-len(paths) // TEST_SHARE)
        found.setdefault(name, []).extend(paths[:held_out] if split == "test" else paths[held_out:])
    return dict(sorted(found.items()))


def _digest(path: Path) -> str:
    return hashlib.sha256(f"{path.parent.name}/{path.name}".encode()).hexdigest()


def new_kinds(kinds: Sequence[str], task: str) -> frozenset[str]:
    """Return the kinds that training never asks about in this task; they are there to see, but not asked about."""
    digests = sorted(kinds, key=lambda kind: hashlib.sha256(f"{task}: {kind}".encode()).hexdigest())
    return frozenset(digests[: len(kinds) // NEW_SHARE])
