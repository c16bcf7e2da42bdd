"""How many of 1,000 held-out questions does the bundled model answer, by method and budget?

    python benchmarks/bundled_accuracy.py

Writes a row per setting to ``benchmarks/results/`` and prints them as a table.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from itertools import islice

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from environment import write
from zooprune import get_pruner, load_bundled, prune
from zooprune.bundled.benchmark import Item, held_out, is_right
from zooprune.bundled.questions import KINDS

BATCH = 20
BUDGETS = (192, 128, 64)
METHODS = ("zoo", "random", "sensitivity", "diversity")


def prompt(processor, question: str, *, with_image: bool) -> str:
    content = [{"type": "image"}] if with_image else []
    content.append({"type": "text", "text": question})
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def replies(model, processor, items: list[Item], images: str) -> list[str]:
    """Answer a batch; `images` is "shown", "blank" (uniform grey) or "removed" (no image in the prompt)."""
    texts = [prompt(processor, item.question.text, with_image=images != "removed") for item in items]
    pictures = None
    if images == "shown":
        pictures = [item.image for item in items]
    elif images == "blank":
        pictures = [Image.new("RGB", (336, 336), (128, 128, 128)) for _ in items]
    inputs = processor(text=texts, images=pictures, return_tensors="pt", padding=True)
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def measure(model, processor, items: list[Item], what: str, images: str = "shown") -> dict[str, float]:
    """Return accuracy in percent, per kind of question and as their mean."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    batches = iter(items)
    for _ in track(range(math.ceil(len(items) / BATCH)), what, console=Console(stderr=True)):
        batch = list(islice(batches, BATCH))
        for item, reply in zip(batch, replies(model, processor, batch, images), strict=True):
            asked[item.question.kind] += 1
            right[item.question.kind] += is_right(reply, item.question.answer)
    shares = {kind: 100 * right[kind] / asked[kind] for kind in KINDS}
    return shares | {"all": 100 * right.total() / asked.total()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="questions (default 1000)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of 'random', averaged (default 3)")
    arguments = parser.parse_args()
    model, processor = load_bundled()
    items = list(held_out(arguments.count))
    rows = [
        {"method": "image removed", "tokens": 0, "accuracy": measure(model, processor, items, "removed", "removed")},
        {"method": "blank image", "tokens": 576, "accuracy": measure(model, processor, items, "blank", "blank")},
        {"method": "all tokens", "tokens": 576, "accuracy": measure(model, processor, items, "all tokens")},
    ]
    for budget in BUDGETS:
        for method in METHODS:
            runs = []
            for seed in range(arguments.seeds if method == "random" else 1):
                options = {"seed": seed} if method == "random" else {}
                with torch.no_grad(), prune(model, get_pruner(method, keep=budget, **options)):
                    runs.append(measure(model, processor, items, f"{method} at {budget}"))
            mean = {key: sum(run[key] for run in runs) / len(runs) for key in runs[0]}
            rows.append({"method": method, "tokens": budget, "accuracy": mean})
    table = Table("method", "tokens", *KINDS, "all")
    for row in rows:
        figures = [f"{row['accuracy'][key]:.1f}" for key in (*KINDS, "all")]
        table.add_row(str(row["method"]), str(row["tokens"]), *figures)
    Console(width=120).print(table)
    print(write("bundled_accuracy", {"questions": arguments.count, "random_seeds": arguments.seeds, "rows": rows}))


if __name__ == "__main__":
    main()
