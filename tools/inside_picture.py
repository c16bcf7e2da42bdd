"""Draw docs/images/inside.png: which visual tokens of one scene each layer reads under methods inside the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from PIL.Image import Dither

from zooprune import load_bundled, prune
from zooprune.answering import generate
from zooprune.bundled import demo_scene
from zooprune.evaluation.metrics import is_right
from zooprune.picture import Panel, draw_gallery, save_picture
from zooprune.prompting import build_inputs, seen_images
from zooprune.tokens import Selection

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "inside.png"
KEEP = 192
METHODS = ("fastv", "pyramiddrop", "feather", "adaptinfer", "sparsevlm", "transprune", "visiondrop_inside", "lvlm_csp")


def main() -> None:
    model, processor = load_bundled()
    scene, question, expected = demo_scene()
    inputs = build_inputs(processor, [[scene]], [question]).to(model.device, model.dtype)
    panels = []
    for name in METHODS:
        with prune(model, name, keep=KEEP) as session:
            (answer,), _ = generate(model, processor, inputs, max_new_tokens=8)
            (image,) = session.reports[-1].images
        for layer, count in enumerate(image.read):
            left = [tokens for first, tokens in image.survivors if first <= layer][-1]
            shown = dataclasses.replace(image, selection=Selection(left, image.selection.total))
            # Where all are there, the picture says so.
            label = f"layer {layer}" if count == image.kept else f"layer {layer}, {count} tokens"
            panels.append(Panel(label, name, answer, is_right(answer, [expected]), (shown,)))
    seen = seen_images(processor, inputs, [scene])[0]
    caption = (
        f"A layer reads {KEEP} visual tokens on average. Those that it reads are shown in colour.\n"
        f"A tick marks the right answer, {expected}; a cross marks any other."
    )
    picture = draw_gallery(seen, panels, question, caption)
    save_picture(picture.quantize(256, dither=Dither.NONE), PICTURE)
    print(PICTURE)


if __name__ == "__main__":
    main()
