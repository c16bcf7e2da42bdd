"""Draw the held-out questions that ship with the package.

python training/make_benchmark.py
"""

from __future__ import annotations

import gzip
import json
from collections import Counter

import numpy as np

from layouts import draw_layout
from questions import SINGLE_KINDS, ask_about, ask_about_pair
from zooprune.bundled.benchmark import KINDS, PATH, checksum
from zooprune.bundled.scenes import render

SCENES, PER_TASK = 660, 350


def main() -> None:
    layouts = [draw_layout(seed, "test") for seed in range(SCENES)]
    drawn = {}
    for task in KINDS:
        rng = np.random.default_rng([KINDS.index(task), 11])
        drawn[task] = []
        for scene in rng.permutation(SCENES):
            if task in SINGLE_KINDS:
                scenes = [int(scene)]
                question = ask_about(layouts[scene], task, rng)
            else:
                scenes = [int(scene), int((scene + 1) % SCENES)]
                question = ask_about_pair((layouts[scenes[0]], layouts[scenes[1]]), rng)
            if question is not None and len(drawn[task]) < PER_TASK:
                drawn[task].append(
                    {
                        "id": f"{task}-{len(drawn[task])}",
                        "task": task,
                        "scenes": scenes,
                        "question": question.text,
                        "answer": question.answer,
                        "evidence": question.evidence,
                    }
                )
        print(task, len(drawn[task]), Counter(item["answer"] for item in drawn[task]).most_common(3))
    questions = [drawn[task][number] for number in range(PER_TASK) for task in KINDS]
    shown = {scene for item in questions for scene in item["scenes"]}
    print(f"{len(questions)} questions about {len(shown)} scenes")
    stored = {
        "scenes": [layout.to_json() for layout in layouts],
        "checksums": [checksum(render(layout)) for layout in layouts],
        "questions": questions,
    }
    # Without a time stamp the file is the same whenever it is made.
    PATH.write_bytes(gzip.compress(json.dumps(stored, separators=(",", ":")).encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
