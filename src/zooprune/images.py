"""Read an image file of whatever kind as RGB, or say in one sentence why not."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

#: Larger images are refused by their header, before a pixel is decoded.
MAX_PIXELS = 64_000_000


def load_image(path: str | Path) -> Image.Image:
    """Read the first frame of an image file.

    The EXIF rotation is applied, 16-bit channels are scaled to 8, and transparency is laid over white.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    PIL.Image.Image
        RGB.

    Raises
    ------
    ValueError
        If the file is missing, is no image, is cut short, or has more than `MAX_PIXELS` pixels.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give one image file")
    if not path.exists():
        raise ValueError(f"{path} does not exist; check the path")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images by itself; the check below speaks for it.
            warnings.simplefilter("ignore")
            opened = Image.open(path)
        with opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(
                    f"{path} has {opened.width} x {opened.height} pixels, more than {MAX_PIXELS:,}; scale it down first"
                )
            opened.load()
            return to_rgb(opened)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        what = "is too large" if isinstance(error, Image.DecompressionBombError) else "is not an image Pillow can read"
        raise ValueError(f"{path} {what}; convert it to PNG or JPEG at a moderate size") from None
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{path} cannot be read, the file may be cut short ({error}); save it anew") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB: upright, opaque and scaled from deeper channels."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # 16-bit files use the range up to 65535; Pillow's own conversion would clip them to white.
        deep = image.mode != "F" or values.max(initial=0) > 255
        image = Image.fromarray((values / (257 if deep else 1)).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")
