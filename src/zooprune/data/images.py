"""Read an image file of any kind as RGB, or say in one sentence why it cannot be read."""

from __future__ import annotations

import io
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

#: Larger images are refused by their header, before a pixel is decoded.
MAX_PIXELS = 120_000_000
#: Larger JPEGs are decoded at a half, a quarter or an eighth of their size, in a fraction of the time and memory.
FULL_PIXELS = 64_000_000
#: What Pillow decodes by itself. EPS, for one, would be handed to Ghostscript and run.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
#: The files of a folder that are taken for images.
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".ppm", ".avif", ".jp2", ".heic", ".heif"}
)
#: The formats that pictures are written in, by the end of the file's name.
WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
#: The kinds of HEIC files, by the brand in bytes 8 to 12. Pillow reads them with pillow-heif only.
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def load_image(path: str | Path) -> Image.Image:
    """Read the first frame of an image file.

    The EXIF rotation is applied if the EXIF can be read. Transparent parts become white. Deeper channels are scaled to
    8 bits: integers from 16 bits, floats from the smallest of the ranges 0 to 1, 0 to 255 and 16 bits that holds them.
    A JPEG of more than `FULL_PIXELS` pixels is scaled down by 2, 4 or 8 while it is decoded. HEIC needs pillow-heif.

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
        If the file is missing, is neither HEIC nor in one of `FORMATS`, is cut short or damaged, or has more than
        `MAX_PIXELS` pixels, or is HEIC and pillow-heif is not installed. The message names the file.
    """
    refuse_address(str(path))
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
        # Reading a pipe would block, and reading a device would never end.
        raise ValueError(f"{path} is not a regular file; save the image to one first")
    return _decode(path, str(path))


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder by name, without those of its subfolders."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)


def picture_format(path: Path) -> str:
    """Return Pillow's name of the format in which a picture of this name is written.

    Raises
    ------
    ValueError
        If the end of the name is none of `WRITTEN`.
    """
    form = WRITTEN.get(path.suffix.lower())
    if form is None:
        raise ValueError(f"{path} ends in none of {', '.join(WRITTEN)}; choose one of these formats")
    return form


def refuse_address(given: str) -> None:
    """Raise a ValueError if what should be a file is an address on the web."""
    if re.match("[a-z][a-z0-9+.-]+://?[^/]", given, re.IGNORECASE):
        raise ValueError(f"{given} is an address on the web, and only local files are read; download it first")


def decode_image(data: bytes, name: str) -> Image.Image:
    """Read the first frame of an image file that is in memory, as `load_image` does.

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        What error messages call it.
    """
    return _decode(io.BytesIO(data), name)


def _decode(source: Path | io.BytesIO, name: str) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns of large images and of EXIF it cannot read; here the first is an error and the second is ignored.
        warnings.simplefilter("ignore")
        with _open(source, name) as opened:
            # Pillow's decoders raise many kinds: OSError, SyntaxError, RuntimeError, IndexError, struct.error.
            try:
                if opened.width * opened.height > FULL_PIXELS:
                    # JPEG alone can do it; for all other formats this does nothing.
                    opened.draft(None, _scaled(opened.size))
                tiles = getattr(opened, "tile", None)
                stored = str(tiles[0].args) if tiles else ""
                opened.load()
                if "transparency" in opened.info and stored in _TO_8_BITS:
                    opened.info["transparency"] = _TO_8_BITS[stored](opened.info["transparency"])
                return to_rgb(opened)
            except Exception as error:
                raise _unreadable(name, error) from None


def _open(source: Path | io.BytesIO, name: str) -> Image.Image:
    """Read the header of an image, and refuse what must not be decoded."""
    Image.init()
    try:
        opened = Image.open(source, formats=[form for form in FORMATS if form in Image.OPEN])
    except UnidentifiedImageError:
        if not _is_heic(source):
            raise ValueError(f"{name} is not an image Pillow can read; convert it to PNG or JPEG") from None
        return _open_heic(source, name)
    except Image.DecompressionBombError:
        raise ValueError(f"{name} is too large; scale it down first") from None
    except Exception as error:
        raise _unreadable(name, error) from None
    _check_size(opened.size, name)
    return opened


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} has {width} x {height} pixels, more than {MAX_PIXELS:,}; scale it down first")


def _scaled(size: tuple[int, int]) -> tuple[int, int]:
    """Return a size divided by 2, 4 or 8: the largest of at most `FULL_PIXELS`."""
    scale = next((scale for scale in (2, 4) if size[0] * size[1] <= FULL_PIXELS * scale**2), 8)
    return size[0] // scale, size[1] // scale


def _is_heic(source: Path | io.BytesIO) -> bool:
    if isinstance(source, io.BytesIO):
        start = source.getvalue()[:12]
    else:
        with source.open("rb") as file:
            start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:] in _HEIC


def _open_heic(source: Path | io.BytesIO, name: str) -> Image.Image:
    """Read a HEIC file without telling Pillow about pillow-heif, which would change `Image.open` for everybody."""
    try:
        import pillow_heif
    except ImportError:
        raise ValueError(
            f"{name} is a HEIC image, which takes pillow-heif; run: pip install 'zooprune[heic]', or save it as JPEG"
        ) from None
    try:
        found = pillow_heif.open_heif(source, convert_hdr_to_8bit=True)
    except Exception as error:
        raise _unreadable(name, error) from None
    _check_size(found.size, name)
    try:
        # libheif has turned it upright already.
        picture: Image.Image = found.to_pillow()
    except Exception as error:
        raise _unreadable(name, error) from None
    return picture


#: By how pixels are stored: Pillow scales them to 8 bits, but not the colour that marks transparent pixels.
_TO_8_BITS: dict[str, Callable[[Any], Any]] = {
    "L;2": lambda grey: grey * 85,
    "L;4": lambda grey: grey * 17,
    "RGB;16B": lambda colour: tuple(channel >> 8 for channel in colour),
}


def _unreadable(name: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{name} cannot be read, the file may be cut short or damaged ({reason}); save it again")


#: How to turn a photograph upright, by its EXIF orientation.
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
    """Return an image as 8-bit RGB: upright, without transparency, and scaled from deeper channels."""
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
    """Return the EXIF orientation; 1, which is upright, if there is none or it cannot be read."""
    # `ImageOps.exif_transpose` reads all of the EXIF and writes it again, so it fails at any broken entry.
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Return grey values of more than 8 bits, or floats, as 8 bits; transparent pixels become white."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
    # Pillow's own conversion would clip what lies above 255 to white.
    largest = values.max(initial=0) if image.mode == "F" else 65535
    scale = 255 if largest <= 1 else 1 if largest <= 255 else 1 / 257
    grey = (values * scale).clip(0, 255).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)
