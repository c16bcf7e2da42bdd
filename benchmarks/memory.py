"""How much memory does a request take, by the visual tokens kept?

    python benchmarks/memory.py [--shape small] [--device cpu]

The cache is counted, the peak is measured: by how much the process, or the GPU's allocator, rises above the model.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from environment import write
from plotting import figure, save
from zooprune.benching import memory
from zooprune.benching.shapes import SHAPES
from zooprune.benching.table import table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    rows = memory.rows(arguments.shape, device=arguments.device)
    Console(width=100).print(table(rows, arguments.shape))
    drawn, (axes,) = figure(1)
    kept = [row["keep"] for row in rows]
    axes.plot(kept, [row["kv_cache_bytes"] / 2**20 for row in rows], marker="o", markersize=3, label="KV cache")
    if all(row["peak_bytes"] is not None for row in rows):
        axes.plot(
            kept, [row["peak_bytes"] / 2**20 for row in rows], marker="o", markersize=3, label="peak of a request"
        )
    axes.set(xlabel=f"visual tokens kept ({arguments.shape})", ylabel="MiB", ylim=(0, None))
    axes.legend(frameon=False)
    print(save(drawn, f"bench-memory-{arguments.shape}"))
    print(write(f"memory-{arguments.shape}", {"rows": rows}))


if __name__ == "__main__":
    main()
