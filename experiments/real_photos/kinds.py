"""What the photographs show: a plain English name for each folder of Caltech-101, and what is held out.

Folders whose photographs few people would tell apart share a name (a ketch and a schooner are both a ship). Names are
short words that the language model knows, most of them one token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Split = Literal["train", "test"]

#: Folders that are not called as people would say; all others are called like their folder.
NAMES = {
    "Leopards": "leopard",
    "Motorbikes": "motorcycle",
    "airplanes": "airplane",
    "binocular": "binoculars",
    "brontosaurus": "dinosaur",
    "buddha": "Buddha",
    "car_side": "car",
    "ceiling_fan": "fan",
    "cougar_body": "cougar",
    "cougar_face": "cougar",
    "crayfish": "lobster",
    "crocodile_head": "crocodile",
    "dalmatian": "dog",
    "dollar_bill": "dollar",
    "electric_guitar": "guitar",
    "euphonium": "tuba",
    "ewer": "jug",
    "ferry": "ship",
    "flamingo_head": "flamingo",
    "garfield": "Garfield",
    "gerenuk": "antelope",
    "grand_piano": "piano",
    "hawksbill": "turtle",
    "headphone": "headphones",
    "inline_skate": "skate",
    "joshua_tree": "tree",
    "ketch": "ship",
    "mandolin": "guitar",
    "minaret": "tower",
    "nautilus": "shell",
    "pagoda": "temple",
    "revolver": "gun",
    "schooner": "ship",
    "sea_horse": "seahorse",
    "snoopy": "Snoopy",
    "soccer_ball": "ball",
    "stegosaurus": "dinosaur",
    "stop_sign": "sign",
    "trilobite": "fossil",
    "water_lilly": "lotus",
    "wild_cat": "cat",
    "windsor_chair": "chair",
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
        One folder per class, as Caltech-101 is laid out. Classes without an entry in `NAMES` are called like their
        folder.
    split : {"train", "test"}
        Every fifth photograph of a folder, by a digest of its name, belongs to the test.

    Raises
    ------
    ValueError
        If the folder holds fewer than ten kinds.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() in SUFFIXES and (_digest(path) % TEST_SHARE == 0) == (split == "test"):
            label = path.parent.name
            found.setdefault(NAMES.get(label, label.replace("_", " ")), []).append(path)
    if len(found) < 10:
        raise ValueError(f"{folder} holds photographs of {len(found)} kinds; give a folder with one folder per class")
    return dict(sorted(found.items()))


def _digest(path: Path) -> int:
    return int(hashlib.sha256(f"{path.parent.name}/{path.name}".encode()).hexdigest()[:8], 16)


def new_kinds(kinds: Sequence[str], task: str) -> frozenset[str]:
    """Return the kinds that training never asks about in this task; they are there to see, but not asked about."""
    digests = sorted(kinds, key=lambda kind: hashlib.sha256(f"{task}: {kind}".encode()).hexdigest())
    return frozenset(digests[: len(kinds) // NEW_SHARE])
