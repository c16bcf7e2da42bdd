"""How many of 1,000 held-out questions does the bundled model answer, by method and budget?

    python benchmarks/bundled_accuracy.py

Writes a row per setting to ``benchmarks/results/`` and prints them as a table.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

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


def batches(processor, items: list[Item], images: str) -> list[tuple[list[Item], dict]]:
    """Prepare the questions; `images` is "shown", "blank" (uniform grey) or "removed" (no image in the prompt)."""
    prepared = []
    for first in range(0, len(items), BATCH):
        batch = items[first : first + BATCH]
        texts = [prompt(processor, item.question.text, with_image=images != "removed") for item in batch]
        pictures = None
        if images == "shown":
            pictures = [item.image for item in batch]
        elif images == "blank":
            pictures = [Image.new("RGB", (336, 336), (128, 128, 128)) for _ in batch]
        prepared.append((batch, processor(text=texts, images=pictures, return_tensors="pt", padding=True)))
    return prepared


def measure(model, processor, prepared: list[tuple[list[Item], dict]], what: str) -> dict[str, float]:
    """Return accuracy in percent, per kind of question and over all."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for batch, inputs in track(prepared, what, console=Console(stderr=True)):
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        said = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for item, reply in zip(batch, said, strict=True):
            asked[item.question.kind] += 1
            right[item.question.kind] += is_right(reply, item.question.answer)
    shares = {kind: 100 * right[kind] / asked[kind] for kind in KINDS}
    return shares | {"all": 100 * right.total() / asked.total()}


@contextmanager
def encoding_once(model) -> Iterator[None]:
    """Keep what the vision tower makes of every batch: all methods start from the same, and it is most of the work."""
    tower = model.model.vision_tower
    forward, seen = tower.forward, {}

    def remembering(pixel_values, **options):
        if pixel_values.data_ptr() not in seen:
            # The pixels are kept too, so that no other tensor takes their address.
            seen[pixel_values.data_ptr()] = pixel_values, forward(pixel_values, **options)
        return seen[pixel_values.data_ptr()][1]

    tower.forward = remembering
    try:
        yield
    finally:
        del tower.forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="questions (default 1000)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of 'random', averaged (default 1)")
    arguments = parser.parse_args()
    model, processor = load_bundled()
    items = list(held_out(arguments.count))
    rows = []
    for name, tokens, images in (("image removed", 0, "removed"), ("blank image", 576, "blank")):
        unseen = batches(processor, items, images)
        rows.append({"method": name, "tokens": tokens, "accuracy": measure(model, processor, unseen, name)})
    shown = batches(processor, items, "shown")
    with encoding_once(model):
        rows.append({"method": "all tokens", "tokens": 576, "accuracy": measure(model, processor, shown, "all tokens")})
        for budget, method in product(BUDGETS, METHODS):
            runs = []
            for seed in range(arguments.seeds if method == "random" else 1):
                options = {"seed": seed} if method == "random" else {}
                with torch.no_grad(), prune(model, get_pruner(method, keep=budget, **options)):
                    runs.append(measure(model, processor, shown, f"{method} at {budget}"))
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
