"""The photographs behind the scenes: those of the test ship with the package, those for training with scikit-image."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import skimage
from PIL import Image

from zooprune.bundled import assets

PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "train": (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "grass.png", "hubble_deep_field.jpg", "ihc.png",
        "moon.png", "motorcycle_left.png", "retina.jpg",
    ),
    "test": ("coffee.webp", "gravel.webp", "rocket.webp"),
}  # fmt: skip


@cache
def photograph(name: str) -> Image.Image:
    """Return a photograph of either split."""
    if name in PHOTOGRAPHS["test"]:
        return assets.photograph(name)
    image = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
    # No scene shows more than this, and small photographs are quick to crop.
    scale = 672 / min(image.size)
    image.thumbnail((image.width * scale, image.height * scale))
    return image
