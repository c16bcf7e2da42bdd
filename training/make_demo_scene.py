"""Choose the scene that ``zooprune ask`` shows when it is given none.

The scene is the one of a fixed seed among the held-out ones; the question is drawn like any other::

    python training/make_demo_scene.py 2000003 sign
"""

from __future__ import annotations

import json
import sys

import numpy as np

from layouts import draw_layout
from questions import ask_about
from zooprune.bundled.assets import FOLDER
from zooprune.bundled.scenes import render


def main(seed: int, kind: str) -> None:
    layout = draw_layout(seed, "test")
    question = ask_about(layout, kind, np.random.default_rng(seed))
    if question is None:
        raise ValueError(f"scene {seed} offers no question of kind {kind}; take another seed")
    render(layout).save(FOLDER / "demo.png", optimize=True)
    caption = {"seed": seed, "question": question.text.capitalize(), "answer": question.answer}
    (FOLDER / "demo.json").write_text(json.dumps(caption) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
