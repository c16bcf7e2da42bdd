"""What does it cost to score tokens, by estimator, projector and number of tokens?

    python benchmarks/sensitivity.py [--shapes llava-1.5-7b ...] [--tokens 576 ...] [--repeats 5] [--device cpu]

Shapes are those of known models; weights and features are random, since speed does not depend on the values. The
estimators that sample run at the first shape and the first number of tokens alone.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from environment import write
from plotting import figure, lines, save
from zooprune.benching import sensitivity
from zooprune.benching.shapes import SHAPES
from zooprune.benching.table import table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["llava-1.5-7b"], choices=SHAPES)
    parser.add_argument("--tokens", nargs="+", type=int, default=[576, 64, 256, 1024, 2880])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-sampled", action="store_true", help="leave out what takes a hundred times longer")
    arguments = parser.parse_args()
    rows = []
    for place, shape in enumerate(arguments.shapes):
        found = sensitivity.rows(
            shape,
            tokens=tuple(arguments.tokens),
            repeats=arguments.repeats,
            device=arguments.device,
            sampled=place == 0 and not arguments.no_sampled,
        )
        Console(width=100).print(table(found, shape))
        rows += found
    drawn, panels = figure(len(arguments.shapes))
    for axes, shape in zip(panels, arguments.shapes, strict=True):
        lines(axes, [row for row in rows if row["shape"] == shape], "tokens", f"tokens ({shape})")
    print(save(drawn, "bench-sensitivity"))
    print(write("sensitivity", {"rows": rows}))


if __name__ == "__main__":
    main()
