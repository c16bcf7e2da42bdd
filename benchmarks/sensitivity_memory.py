"""How much memory does an estimator take on top of the model, at LLaVA's widths and token counts?

    python benchmarks/sensitivity_memory.py [--directions 64]

Every figure is the peak of a process of its own, less what that process held when the estimator was called.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from environment import write
from zooprune import sensitivity

ESTIMATORS = ("finite_difference", "jvp", "closed_form")
TOKENS = (576, 2880)
DTYPES = ("float32", "bfloat16")
VISION, TEXT = 1024, 4096


def extra(estimator: str, tokens: int, dtype: str, directions: int) -> int:
    """Return the bytes by which this process peaks above its present size; Linux only."""
    options = {} if estimator == "closed_form" else {"directions": directions}
    with torch.no_grad():
        projector = nn.Sequential(nn.Linear(VISION, TEXT), nn.GELU(), nn.Linear(TEXT, TEXT)).to(getattr(torch, dtype))
        features = torch.randn(tokens, VISION).to(getattr(torch, dtype))
    held = _status("VmRSS")
    getattr(sensitivity, estimator)(projector, features, **options)
    # Not getrusage: its peak starts from that of the process which started this one.
    return _status("VmHWM") - held


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directions", type=int, default=64)
    parser.add_argument("--measure", nargs=3, metavar=("ESTIMATOR", "TOKENS", "DTYPE"), help="one figure, in bytes")
    arguments = parser.parse_args()
    if arguments.measure:
        estimator, tokens, dtype = arguments.measure
        print(extra(estimator, int(tokens), dtype, arguments.directions))
        return
    table, rows = Table("estimator", "tokens", "weights", "extra memory, MiB"), []
    for estimator in ESTIMATORS:
        for tokens in TOKENS:
            for dtype in DTYPES:
                command = [sys.executable, __file__, "--directions", str(arguments.directions)]
                command += ["--measure", estimator, str(tokens), dtype]
                peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                table.add_row(estimator, str(tokens), dtype, f"{peak / 2**20:.0f}")
                rows.append({"estimator": estimator, "tokens": tokens, "dtype": dtype, "extra_bytes": peak})
    Console().print(table)
    shapes = {"d_vision": VISION, "d_hidden": TEXT, "d_text": TEXT, "directions": arguments.directions}
    print(write("sensitivity_memory", {"shapes": shapes, "rows": rows}))


if __name__ == "__main__":
    main()
