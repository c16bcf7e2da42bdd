"""Read an image file of whatever kind as RGB, or say in one sentence why not."""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

#: Larger images are refused by their header, before a pixel is decoded.
MAX_PIXELS = 64_000_000
#: What Pillow decodes by itself. EPS, for one, would be handed to Ghostscript and run.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")


def load_image(path: str | Path) -> Image.Image:
    """Read the first frame of an image file.

    The EXIF rotation is applied where the EXIF can be read, transparency is laid over white, and deeper channels are
    scaled to 8 bits: integers from 16 bits, floats from 0 to 1, 0 to 255 or 16 bits, whichever of these holds them.

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
        If the file is missing, is not in one of `FORMATS`, is cut short or damaged, or has more than `MAX_PIXELS`
        pixels. The text names the file.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{str(path)!r} cannot be reached ({reason}); check the path") from None
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
    with warnings.catch_warnings():
        # Pillow warns of large images and of EXIF it cannot read; here the first is an error and the second is ignored.
        warnings.simplefilter("ignore")
        try:
            opened = Image.open(source, formats=[form for form in FORMATS if form in Image.OPEN])
        except UnidentifiedImageError:
            raise ValueError(f"{name} is not an image Pillow can read; convert it to PNG or JPEG") from None
        except Image.DecompressionBombError:
            raise ValueError(f"{name} is too large; scale it down first") from None
        except Exception as error:
            raise _unreadable(name, error) from None
        with opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(
                    f"{name} has {opened.width} x {opened.height} pixels, more than {MAX_PIXELS:,}; scale it down first"
                )
            # Pillow's decoders raise whatever they meet: OSError, SyntaxError, RuntimeError, IndexError, struct.error.
            try:
                stored = str(opened.tile[0].args) if opened.tile else ""
                opened.load()
                if "transparency" in opened.info and stored in _TO_8_BITS:
                    opened.info["transparency"] = _TO_8_BITS[stored](opened.info["transparency"])
                return to_rgb(opened)
            except Exception as error:
                raise _unreadable(name, error) from None


#: Pillow scales these pixels to 8 bits, by how they are stored, but not the colour that stands for transparent.
_TO_8_BITS: dict[str, Callable[[Any], Any]] = {
    "L;2": lambda grey: grey * 85,
    "L;4": lambda grey: grey * 17,
    "RGB;16B": lambda colour: tuple(channel >> 8 for channel in colour),
}


def _unreadable(name: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{name} cannot be read, the file may be cut short or damaged ({reason}); save it anew")


#: How to set a photograph upright, by its EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB: upright, opaque and scaled from deeper channels."""
    turn = _orientation(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(ground, layer)
    image = image.convert("RGB")
    return image.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 for upright where there is none or it cannot be read."""
    # `ImageOps.exif_transpose` would read all of the EXIF and write it again, and fail at any broken entry.
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Return grey values of more than 8 bits, or floats, as 8 bits; what is transparent becomes white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
    # Pillow's own conversion would clip what lies above 255 to white.
    largest = values.max(initial=0) if image.mode == "F" else 65535
    scale = 255 if largest <= 1 else 1 if largest <= 255 else 1 / 257
    grey = (values * scale).clip(0, 255).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)
