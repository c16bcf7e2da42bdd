"""Write result files, each with where and with what it was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zooprune.environment import describe
from zooprune.files import write_text

RESULTS = Path(__file__).parent / "results"


def write(name: str, figures: dict[str, Any]) -> Path:
    """Write a result file of today; the old one of the same day stays until the new one is whole."""
    RESULTS.mkdir(exist_ok=True)
    row = {"environment": describe()} | figures
    path = RESULTS / f"{name}-{row['environment']['date']}.json"
    write_text(path, json.dumps(row, indent=1) + "\n")
    return path
