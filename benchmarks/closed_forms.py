"""How well do the cheaper closed forms rank tokens on trained weights and real features?

    python benchmarks/closed_forms.py [--images 100]

The bundled model's projector, on held-out scenes. It is too narrow for the library to bother with a cheaper form by
itself; here each of them is asked for.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from environment import write
from zooprune import load_bundled
from zooprune.bundled.benchmark import scene_image
from zooprune.families import find_family
from zooprune.sensitivity.jacobian import AboutMeans, Form, LowRank, form_of, rank_correlation, squared_norm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    model, processor = load_bundled()
    projector, family = model.model.multi_modal_projector, find_family(model)
    whole = form_of(projector, None)
    (grams,) = (quadratic.grams for quadratic in whole.quadratics)
    forms = {f"about {strips} means": AboutMeans(grams, strips) for strips in (1, 4, 16, 64)}
    forms |= {f"diagonal + {columns} columns": LowRank.of(grams, columns) for columns in (4, 16, 64)}
    found: dict[str, list[float]] = {name: [] for name in forms}
    for scene in range(arguments.images):
        pixels = processor.image_processor(scene_image(scene), return_tensors="pt")
        with torch.no_grad():
            (visual,) = family.encode(model, "image", pixels).visuals
            exact = squared_norm(projector, visual.tokens.features, whole)
            for name, form in forms.items():
                scores = squared_norm(projector, visual.tokens.features, Form((form,), name, together=len(exact)))
                found[name].append(rank_correlation(scores, exact))
    table, rows = Table("closed form", "mean rank correlation", "least"), []
    for name, values in found.items():
        mean, least = sum(values) / len(values), min(values)
        table.add_row(name, f"{mean:.5f}", f"{least:.5f}")
        rows.append({"form": name, "mean": mean, "least": least})
    Console().print(table)
    print(write("closed_forms", {"images": arguments.images, "rows": rows}))


if __name__ == "__main__":
    main()
