"""Draw the loss and held-out accuracy of a training run from its log, and say how long it took.

python training/plot.py training/log.jsonl docs/images/training.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from train import STAGES
from zooprune.bundled.benchmark import KINDS


def main(log: Path, picture: Path) -> None:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure, (losses, shares) = plt.subplots(1, 2, figsize=(15, 4.5), layout="constrained")
    labels = {
        "patch": "what each patch shows",
        "answer": "answers",
        "ground": "where a named thing is",
        "looks": "where to look to count",
    }
    for name, label in labels.items():
        points = [(row["step"], row["loss"][name]) for row in rows if name in row["loss"]]
        losses.plot(*zip(*points, strict=True), label=label)
    losses.set(title="training loss", xlabel="step", yscale="log")
    shares.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    for name in ("patches of things", "patches of characters", *KINDS, "accuracy"):
        points = [(row["step"], 100 * row["held_out"][name]) for row in rows if name in row["held_out"]]
        heavy = {"color": "black", "linewidth": 2.5} if name == "accuracy" else {}
        shares.plot(*zip(*points, strict=True), label="mean of all kinds" if name == "accuracy" else name, **heavy)
    shares.set(title="held-out accuracy, % (128 scenes)", xlabel="step", ylim=(0, 100))
    starts: dict[str, int] = {}
    for row in rows:
        starts.setdefault(row["stage"], row["step"])
    for axes in (losses, shares):
        for stage, step in starts.items():
            axes.axvline(step, color="0.8", zorder=0)
            axes.text(
                step, 0.01, f" {stage}", rotation=90, fontsize=7, color="0.4", transform=axes.get_xaxis_transform()
            )
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.grid(alpha=0.3)
    batches = {stage.name: stage.batch for stage in STAGES}
    hours = 0.0
    for before, row in zip([{"step": 0}, *rows[:-1]], rows, strict=True):
        hours += (row["step"] - before["step"]) * batches[row["stage"]] / row["images_per_second"] / 3600
    print(f"{rows[-1]['step']:,} steps in {hours:.1f} hours")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
