"""What does it cost to pick tokens, by their number, the budget and the batch?

    python benchmarks/selection.py [--repeats 5] [--device cpu] [--wide]

Embeddings are random around a common direction. The loop of the released code takes minutes where tokens are thousands,
and runs there for the first case alone.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from environment import write
from plotting import figure, lines, save
from zooprune.benching import selection
from zooprune.benching.table import table

#: Number of tokens, budget, batch. The first is LLaVA-NeXT's, which the bar is about.
CASES = {
    "tokens": [(2880, 640, 1), (256, 64, 1), (576, 64, 1), (1024, 64, 1), (2880, 64, 1)],
    "keep": [(576, 16, 1), (576, 64, 1), (576, 128, 1), (576, 192, 1)],
    "batch": [(576, 64, 1), (576, 64, 4), (576, 64, 16)],
}
WIDER = {
    "tokens": [(16384, 64, 1), (16384, 2048, 1)],
    "keep": [(2880, 16, 1), (2880, 160, 1), (2880, 320, 1), (2880, 2048, 1)],
    "batch": [(576, 64, 64)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--published-up-to", type=int, default=1024, help="tokens up to which the released loop runs, 0 for never"
    )
    parser.add_argument("--wide", action="store_true", help="larger cases too, up to 16,384 tokens and 64 images")
    arguments = parser.parse_args()
    cases = {along: [*some, *(WIDER[along] if arguments.wide else [])] for along, some in CASES.items()}
    measured = {}
    for case in dict.fromkeys(case for some in cases.values() for case in some):
        tokens, keep, batch = case
        plain = arguments.published_up_to > 0 and (not measured or tokens**2 * batch <= arguments.published_up_to**2)
        measured[case] = selection.rows(
            tokens, keep, batch=batch, repeats=arguments.repeats, device=arguments.device, plain=plain
        )
        Console(width=100).print(table(measured[case], "selection"))
    drawn, panels = figure(len(cases))
    for axes, (along, some) in zip(panels, cases.items(), strict=True):
        # One budget along the tokens, one number of tokens along the budgets.
        shown = [case for case in some if along != "tokens" or case[1] == 64]
        shown = [case for case in shown if along != "keep" or case[0] == 576]
        lines(axes, [row for case in shown for row in measured[case]], along, along)
    print(save(drawn, "bench-selection"))
    print(write("selection", {"rows": [row for found in measured.values() for row in found]}))


if __name__ == "__main__":
    main()
