"""Ask the same question about every picture of a folder, and write the answers to a table.

For many pictures use `zooprune batch`, which does the same, resumes and reports bad files; see docs/batch.md.
"""

from __future__ import annotations

import csv
from pathlib import Path

from zooprune.answering import answer
from zooprune.bundled.benchmark import load_benchmark, scene_image
from zooprune.data.images import load_image
from zooprune.loading import load_model
from zooprune.policy import Policy
from zooprune.prompting import build_inputs
from zooprune.pruners import ZooPrune

MODEL = "bundled"  # a checkpoint of your own: its folder, or its name on the hub, "llava-hf/llava-1.5-7b-hf"
PHOTOS, TABLE, QUESTION, BATCH = Path("photos"), Path("answers.csv"), "what does the sign say?", 4

PHOTOS.mkdir(exist_ok=True)  # with a folder of your own, leave out these three lines
for item in [item for item in load_benchmark() if item.task == "sign"][:6]:
    scene_image(item.scenes[0]).save(PHOTOS / f"{item.answer}.png")

model, processor = load_model(MODEL)
photos = sorted(PHOTOS.iterdir())
with TABLE.open("w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow(["picture", "answer", "tokens kept", "all tokens"])
    for start in range(0, len(photos), BATCH):
        some = photos[start : start + BATCH]
        inputs = build_inputs(processor, [[load_image(photo)] for photo in some], [QUESTION] * len(some))
        inputs = inputs.to(model.device, model.dtype)
        found = answer(model, processor, inputs, ZooPrune(keep=64), Policy(dropped="stand in"), max_new_tokens=64)
        for row, (photo, text) in enumerate(zip(some, found.texts, strict=True)):
            table.writerow([photo.name, text, *found.report.in_row(row)])
print(TABLE.read_text(encoding="utf-8"), end="")
