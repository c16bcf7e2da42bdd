"""Let a torchvision built for CUDA be imported beside a torch for CPUs; loaded by ``pytest -p torchvision_on_cpu``.

Its compiled operators cannot be loaded there, and its import fails on the first one that does not exist. So their names
are declared first; the processors of transformers call none of them. Where they can be loaded, nothing is done.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch


def declare_operators() -> list[torch.library.Library]:
    """Declare the operators of a torchvision that cannot load its own; they exist as long as what this returns."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent
    try:
        for compiled in folder.glob("_C*.so"):
            torch.ops.load_library(compiled)
    except OSError:
        source = (folder / "_meta_registrations.py").read_text()
        names = re.findall(r'register_(?:meta\("|fake\("torchvision::)(\w+)"\)', source)
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in dict.fromkeys(names):
            library.define(f"{name}(Tensor unusable) -> Tensor")
        return [library]
    return []


_DECLARED = declare_operators()
