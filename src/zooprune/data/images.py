"""Read an image file of whatever kind as RGB, or say in one sentence why not."""

from __future__ import annotations

import io
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

#: Larger images are refused by their header, before a pixel is decoded.
MAX_PIXELS = 64_000_000
#: What Pillow decodes by itself. EPS, for one, would be handed to Ghostscript and run.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")


def load_image(path: str | Path) -> Image.Image:
    """Read the first frame of an image file.

    The EXIF rotation is applied, transparency is laid over white, and deeper channels are scaled to 8 bits: integers
    from 16 bits, floats from 0 to 1, 0 to 255 or 16 bits, whichever of these holds them.

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
        If the file is missing, is not in one of `FORMATS`, is cut short, or has more than `MAX_PIXELS` pixels.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise ValueError(f"the image cannot be reached ({error.strerror}); check the path") from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a folder; give one image file")
    if not stat.S_ISREG(mode):
        # A pipe would block, and a device never end.
        raise ValueError(f"{path} is not a regular file; save the image to one first")
    return _decode(path, str(path))


def decode_image(data: bytes, name: str) -> Image.Image:
    """Read the first frame of an image file that is in memory, as `load_image` does.

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        What to call it when it cannot be read.
    """
    return _decode(io.BytesIO(data), name)


def _decode(source: Path | io.BytesIO, name: str) -> Image.Image:
    Image.init()
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images by itself; the check below speaks for it.
            warnings.simplefilter("ignore")
            opened = Image.open(source, formats=[form for form in FORMATS if form in Image.OPEN])
        with opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(
                    f"{name} has {opened.width} x {opened.height} pixels, more than {MAX_PIXELS:,}; scale it down first"
                )
            opened.load()
            return to_rgb(opened)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        what = "is too large" if isinstance(error, Image.DecompressionBombError) else "is not an image Pillow can read"
        raise ValueError(f"{name} {what}; convert it to PNG or JPEG at a moderate size") from None
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{name} cannot be read, the file may be cut short ({error}); save it anew") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB: upright, opaque and scaled from deeper channels."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        # Pillow's own conversion would clip what lies above 255 to white.
        largest = values.max(initial=0) if image.mode == "F" else 65535
        scale = 255 if largest <= 1 else 1 if largest <= 255 else 1 / 257
        image = Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")
