"""How near does a pruned request come to one whose tokens were chosen at no cost?

    python benchmarks/end_to_end.py [--shape small] [--budgets 192 64] [--new-tokens 1 16] [--batch 1] [--repeats 5]
                                    [--device cpu]

Weights are random, since speed does not depend on the values. The shapes of 7B models take 14 GiB and, on two CPU
cores, the better part of an hour.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from environment import write
from plotting import figure, lines, save
from zooprune.benching import end_to_end
from zooprune.benching.shapes import SHAPES
from zooprune.benching.table import table


def budget(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--budgets", nargs="+", type=budget)
    parser.add_argument("--new-tokens", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-published", action="store_true", help="leave the method as published out")
    parser.add_argument("--method", nargs="*", default=[], help="other methods that run too")
    parser.add_argument("--batch", type=int, default=1, help="prompts of a request, with one image each")
    arguments = parser.parse_args()
    rows = end_to_end.rows(
        arguments.shape,
        budgets=None if arguments.budgets is None else tuple(arguments.budgets),
        new_tokens=tuple(arguments.new_tokens),
        repeats=arguments.repeats,
        device=arguments.device,
        published=not arguments.no_published,
        methods=tuple(arguments.method),
        batch=arguments.batch,
    )
    name = arguments.shape if arguments.batch == 1 else f"{arguments.shape}-batch{arguments.batch}"
    Console(width=100).print(table(rows, name))
    drawn, panels = figure(len(arguments.new_tokens))
    for axes, count in zip(panels, arguments.new_tokens, strict=True):
        shown = [row for row in rows if row["new_tokens"] == count]
        lines(axes, shown, "keep", f"visual tokens kept, {count} new tokens ({name})")
    print(save(drawn, f"bench-end-to-end-{name}"))
    print(write(f"end_to_end-{name}", {"rows": rows}))


if __name__ == "__main__":
    main()
