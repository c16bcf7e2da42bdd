"""Where and with what a figure was measured; goes into every result file."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Return machine, versions and date."""
    cpu = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "zooprune")},
    }


def write(name: str, figures: dict[str, Any]) -> Path:
    """Write a result file of today; the old one of the same day stays until the new one is whole."""
    RESULTS.mkdir(exist_ok=True)
    row = {"environment": describe()} | figures
    path = RESULTS / f"{name}-{row['environment']['date']}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(row, indent=1) + "\n")
    os.replace(temporary, path)
    return path
