"""What share of a request can pruning ever save, by model, resolution, budget and length of the answer?

    python benchmarks/limits.py [--balance 200] [--text 55]

Arithmetic, nothing is measured: `zooprune.costs.largest_saving` says what is assumed. The balance is how many
floating-point operations the machine does while it moves one byte.
"""

from __future__ import annotations

import argparse

from environment import write
from zooprune.benching.shapes import SHAPES
from zooprune.costs import largest_saving, tower_flops
from zooprune.tokens import Budget

ANSWERS = (1, 16, 128, 1024)
#: Shape, visual tokens, patches of a tile with the class token, tiles, budgets.
CASES = [
    ("llava-1.5-7b", 576, 577, 1, (192, 128, 64)),
    ("llava-1.5-13b", 576, 577, 1, (192, 128, 64)),
    ("llava-next-7b", 2880, 577, 5, (640, 320, 160)),
    *(("qwen2.5-vl-7b", patches // 4, patches, 1, (0.2, 0.1)) for patches in (1024, 4096, 16384)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--balance", type=float, default=200.0)
    parser.add_argument("--text", type=int, default=55)
    arguments = parser.parse_args()
    rows = []
    print("| shape | visual tokens | kept | " + " | ".join(f"{count} new" for count in ANSWERS) + " |")
    print("|---|" + "---|" * (2 + len(ANSWERS)))
    for shape, visual, patches, tiles, budgets in CASES:
        config = SHAPES[shape].config()
        tower = tiles * tower_flops(config.vision_config, patches)
        for budget in budgets:
            kept = Budget(budget).count(visual)
            shares = {
                count: largest_saving(
                    config.get_text_config(), tower=tower, visual=visual, kept=kept, text=arguments.text,
                    new_tokens=count, balance=arguments.balance,
                )
                for count in ANSWERS
            }  # fmt: skip
            print(
                f"| {shape} | {visual:,} | {kept} | " + " | ".join(f"{100 * s:.0f} %" for s in shares.values()) + " |"
            )
            rows.append({"shape": shape, "visual": visual, "kept": kept, "tower_flops": tower, "shares": shares})
    print(write("limits", {"balance": arguments.balance, "text": arguments.text, "rows": rows}))


if __name__ == "__main__":
    main()
