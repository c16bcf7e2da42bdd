"""Run tests/torchvision_on_cpu.py before torchvision is first imported, in every process of an environment.

A .pth file imports this whenever Python starts, so it must cost nothing where torchvision is not used.
"""

from __future__ import annotations

import sys


class BeforeTorchvision:
    """A finder that finds nothing."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(BeforeTorchvision)
            import torchvision_on_cpu  # noqa: F401
        return None


sys.meta_path.insert(0, BeforeTorchvision)
