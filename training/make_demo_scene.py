"""Choose the scene that ``zooprune ask`` shows when it is given none.

The scene is the one of a fixed seed among the held-out ones; the question is drawn like any other::

    python training/make_demo_scene.py 2000003 sign
"""

from __future__ import annotations

import json
import sys

import numpy as np

from zooprune.bundled.assets import FOLDER
from zooprune.bundled.questions import ask_about
from zooprune.bundled.scenes import draw_scene


def main(seed: int, kind: str) -> None:
    scene = draw_scene(seed, "test")
    question = ask_about(scene.layout, kind, np.random.default_rng(seed))
    if question is None:
        raise ValueError(f"scene {seed} offers no question of kind {kind}; take another seed")
    scene.image.save(FOLDER / "demo.png", optimize=True)
    caption = {"seed": seed, "question": question.text.capitalize(), "answer": question.answer}
    (FOLDER / "demo.json").write_text(json.dumps(caption) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
