"""What does the bundled model answer when it does not see the image?

    python benchmarks/blind.py

Asks all questions of the packaged benchmark with the images, with uniform grey ones and with none, all visual tokens
kept. Writes a row per condition to ``benchmarks/results/`` and prints them as a table.
"""

from __future__ import annotations

import argparse
from collections import Counter

from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from environment import write
from zooprune import load_bundled
from zooprune.answering import generate
from zooprune.bundled.benchmark import KINDS, Item, load_benchmark, scene_image
from zooprune.bundled.layout import SIDE
from zooprune.evaluation.metrics import is_right
from zooprune.prompting import build_inputs

BATCH = 45
GREY = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))


def replies(model, processor, items: list[Item], images: str) -> list[str]:
    """Return the replies; `images` is "shown", "blank" or "removed"."""
    shown = [
        [] if images == "removed" else [scene_image(scene) if images == "shown" else GREY for scene in item.scenes]
        for item in items
    ]
    inputs = build_inputs(processor, shown, [item.question for item in items])
    return list(generate(model, processor, inputs, max_new_tokens=8)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="questions (default all)")
    arguments = parser.parse_args()
    model, processor = load_bundled()
    items = list(load_benchmark())[: arguments.count]
    # By length, so that little is padding.
    items.sort(key=lambda item: len(item.scenes))
    rows = []
    for images in ("shown", "blank", "removed"):
        right: Counter[str] = Counter()
        for first in track(range(0, len(items), BATCH), images, console=Console(stderr=True)):
            batch = items[first : first + BATCH]
            for item, reply in zip(batch, replies(model, processor, batch, images), strict=True):
                right[item.task] += is_right(reply, [item.answer])
        asked = Counter(item.task for item in items)
        shares = {task: 100 * right[task] / asked[task] for task in KINDS if asked[task]}
        rows.append({"images": images, "accuracy": shares | {"mean": sum(shares.values()) / len(shares)}})
    answers = {task: Counter(item.answer for item in items if item.task == task) for task in KINDS}
    often = {task: 100 * max(counts.values()) / counts.total() for task, counts in answers.items() if counts}
    rows.append({"images": "the most frequent answer", "accuracy": often | {"mean": sum(often.values()) / len(often)}})
    table = Table("images", *rows[0]["accuracy"])
    for row in rows:
        table.add_row(row["images"], *(f"{value:.1f}" for value in row["accuracy"].values()))
    Console(width=120).print(table)
    print(write("blind", {"questions": len(items), "rows": rows}))


if __name__ == "__main__":
    main()
