"""Draw the test: held-out photographs in new scenes, and questions whose answers are equally frequent.

    python experiments/real_photos/draw_questions.py --photographs caltech101 --out runs/real_photos/questions

Writes the scenes as PNG, `questions.jsonl`, which `zooprune eval --data` reads, and `evidence.jsonl`, which says of
every question what has to be seen to answer it and whether training asked about its kind.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asking import COLUMNS, NUMBERS, ROWS, TASKS, Asker, Question
from assemble import SIDE
from kinds import find_photographs, new_kinds
from mosaics import draw_mosaic, render

#: Scenes from here on are for the test alone: training validates on earlier ones.
FIRST = 1_000_000
#: How many answers there are where they are not the names of kinds.
ANSWERS = {
    "existence": 2,
    "where": len(ROWS) * len(COLUMNS),
    "relation": 2,
    "count": len(NUMBERS),
    "pair": 4,
}


def draw(photographs: Mapping[str, Sequence[Path]], per_task: int) -> list[tuple[Question, tuple[int, ...]]]:
    """Return so many questions a task, and the scenes that each is about; all answers of a task are as frequent."""
    kinds = list(photographs)
    asker = Asker(kinds, lambda task: ())
    found: dict[str, list[tuple[Question, tuple[int, ...]]]] = {task: [] for task in TASKS}
    answered = {task: Counter() for task in TASKS}
    number = FIRST
    while any(len(questions) < per_task for questions in found.values()):
        numbers = (number, number + 1)
        scenes = [draw_mosaic(one, photographs, "test", SIDE) for one in numbers]
        rng = np.random.default_rng([number, 2])
        for task, questions in found.items():
            most = -(-per_task // ANSWERS.get(task, len(kinds)))
            about = [(numbers, scenes)] if task == "pair" else [((numbers[i],), scenes[i : i + 1]) for i in range(2)]
            for shown, mosaics in about:
                question = asker.ask(task, mosaics, rng)
                if question is None or len(questions) == per_task or answered[task][question.answer] == most:
                    continue
                answered[task][question.answer] += 1
                questions.append((question, shown))
        number += 2
    # The tasks in turn, so that the first few hundred are a fair sample.
    return [asked for turn in zip(*found.values(), strict=True) for asked in turn]


def rows(questions: Sequence[tuple[Question, tuple[int, ...]]], kinds: Sequence[str]) -> list[tuple[Any, Any]]:
    """Return for each question its row of `questions.jsonl` and that of `evidence.jsonl`."""
    counts: Counter[str] = Counter()
    found = []
    for question, scenes in questions:
        name = f"{question.task}-{counts[question.task]}"
        counts[question.task] += 1
        asked = {
            "id": name,
            "task": question.task,
            "images": [f"scenes/{scene}.png" for scene in scenes],
            "question": question.text,
            "answers": [question.answer],
        }
        evidence = [[image, [edge / SIDE for edge in box]] for image, box in question.evidence]
        new = bool(set(question.kinds) & new_kinds(kinds, question.task))
        found.append((asked, {"id": name, "evidence": evidence, "new": new}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="a folder of photographs per class")
    parser.add_argument("--out", type=Path, required=True, help="folder of the questions")
    parser.add_argument("--per-task", type=int, default=240, help="questions of each of the eight tasks (default 240)")
    arguments = parser.parse_args()
    photographs = find_photographs(arguments.photographs, "test")
    questions = draw(photographs, arguments.per_task)
    (arguments.out / "scenes").mkdir(parents=True, exist_ok=True)
    scenes = sorted({scene for _, shown in questions for scene in shown})
    for scene in scenes:
        render(draw_mosaic(scene, photographs, "test", SIDE)).save(arguments.out / "scenes" / f"{scene}.png")
    asked, evidence = zip(*rows(questions, list(photographs)), strict=True)
    for name, lines in (("questions", asked), ("evidence", evidence)):
        (arguments.out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{arguments.out}: {len(asked)} questions about {len(scenes)} scenes")


if __name__ == "__main__":
    main()
