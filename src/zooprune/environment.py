"""The machine and the versions of a measurement; they are written into every result file."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import zooprune


def describe() -> dict[str, Any]:
    """Return machine, versions, date and git commit; the commit is None if the package does not run from a checkout."""
    cpu = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {
            "zooprune": zooprune.__version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        },
        "commit": _commit(),
    }


def _commit() -> str | None:
    folder = Path(__file__).parent
    # An installed copy may lie inside another project's checkout, which does not track it.
    tracked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name]
    try:
        if subprocess.run(tracked, capture_output=True).returncode:
            return None
        head = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return head.stdout.strip() or None
