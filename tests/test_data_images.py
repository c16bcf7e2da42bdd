from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from zooprune.data import images
from zooprune.data.images import FORMATS, decode_image, load_image

DATA = Path(__file__).parent / "data"

RED, BLUE = (250, 10, 10), (10, 10, 250)


def two_halves(mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue, 40 x 20."""
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))
    return image.convert(mode)


def near(pixel, colour, slack=12):
    return all(abs(a - b) <= slack for a, b in zip(pixel, colour, strict=True))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("P", "png"), ("P", "gif"), ("CMYK", "tiff"), ("RGBA", "png"), ("RGB", "webp"),
                         ("YCbCr", "jpg")],
)  # fmt: skip
def test_colours_survive(tmp_path, mode, suffix):
    path = tmp_path / f"image.{suffix}"
    two_halves(mode).save(path)
    loaded = load_image(path)
    assert loaded.mode == "RGB" and loaded.size == (40, 20)
    assert near(loaded.getpixel((5, 10)), RED, 60) and near(loaded.getpixel((35, 10)), BLUE, 60)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 100 * 4).reshape(4, 100).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    loaded = np.asarray(load_image(tmp_path / "deep.png")).astype(int)
    assert np.abs(loaded - (values / 257)[..., None]).max() <= 1


def test_a_dark_sixteen_bit_image_stays_dark(tmp_path):
    Image.fromarray(np.full((4, 4), 200, dtype=np.uint16)).save(tmp_path / "dark.png")
    assert np.asarray(load_image(tmp_path / "dark.png")).max() <= 1


@pytest.mark.parametrize(
    ("largest", "value", "shown"), [(1, 0.4, 102), (255, 100, 100), (65535, 100 * 257, 100), (0, 0, 0)]
)
def test_float_images_keep_their_range(tmp_path, largest, value, shown):
    values = np.full((4, 4), value, dtype=np.float32)
    values[3] = [largest, np.nan, np.inf, -np.inf]
    Image.fromarray(values).save(tmp_path / "float.tiff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_image(tmp_path / "float.tiff")
    assert loaded.getpixel((0, 0)) == (shown, shown, shown)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    Image.new(mode, (4, 4), (0,) * len(mode)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)


def test_a_transparent_palette_is_laid_over_white(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "clear.png", transparency=0)
    assert load_image(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)


def png(depth: int, kind: int, pixels: bytes, clear: bytes) -> bytes:
    """Return a PNG of four pixels in a row, in which one colour stands for transparent."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 4, 1, depth, kind, 0, 0, 0)
    parts = {b"IHDR": header, b"tRNS": clear, b"IDAT": zlib.compress(b"\0" + pixels), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts.items())


@pytest.mark.parametrize(
    ("depth", "kind", "pixels", "clear"),
    [
        (1, 0, bytes([0b10100000]), [1]),
        (2, 0, bytes([0b01000100]), [1]),
        (4, 0, bytes([0x50, 0x50]), [5]),
        (8, 0, bytes([5, 0, 5, 0]), [5]),
        (16, 0, struct.pack(">4H", 1000, 0, 1000, 0), [1000]),
        (8, 2, bytes([1, 2, 3, 0, 0, 0] * 2), [1, 2, 3]),
        (16, 2, struct.pack(">12H", *[1000, 2000, 3000, 0, 0, 0] * 2), [1000, 2000, 3000]),
    ],
)
def test_a_colour_that_stands_for_transparent_is_white_at_every_depth(depth, kind, pixels, clear):
    loaded = decode_image(png(depth, kind, pixels, struct.pack(f">{len(clear)}H", *clear)), "clear.png")
    assert [loaded.getpixel((place, 0)) for place in range(4)] == [(255,) * 3, (0,) * 3] * 2


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "avif"])
def test_photographs_are_set_upright(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    two_halves().save(tmp_path / f"turned.{suffix}", exif=exif)
    loaded = load_image(tmp_path / f"turned.{suffix}")
    assert loaded.size == (20, 40)
    assert near(loaded.getpixel((10, 5)), RED)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("exif", [b"neither order of bytes", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b""])
def test_exif_that_cannot_be_read_is_ignored(tmp_path, suffix, exif):
    two_halves().save(tmp_path / f"odd.{suffix}", exif=b"Exif\0\0" + exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_image(tmp_path / f"odd.{suffix}")
    assert loaded.size == (40, 20) and near(loaded.getpixel((5, 10)), RED)


def test_an_entry_of_the_exif_that_cannot_be_written_again_is_no_matter():
    assert load_image(DATA / "broken_exif.jpg").size == (20, 30)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_the_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert near(load_image(path).getpixel((4, 4)), RED)


def test_one_pixel(tmp_path):
    Image.new("1", (1, 1), 1).save(tmp_path / "dot.png")
    assert load_image(tmp_path / "dot.png").getpixel((0, 0)) == (255, 255, 255)


def truncated(folder):
    path = folder / "cut.jpg"
    Image.effect_noise((200, 200), 80).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    return path


def text(folder):
    path = folder / "note.png"
    path.write_text("not an image")
    return path


def empty(folder):
    path = folder / "empty.png"
    path.write_bytes(b"")
    return path


def bomb(folder):
    path = folder / "bomb.png"
    Image.new("1", (11000, 11000)).save(path)
    return path


def panorama(folder):
    path = folder / "panorama.png"
    Image.new("1", (20000, 10000)).save(path)
    return path


def address(folder):
    return "https://example.org/photo.jpg"


def pipe(folder):
    path = folder / "pipe.png"
    os.mkfifo(path)
    return path


def program(folder):
    path = folder / "drawing.eps"
    two_halves().save(path)
    return path


def broken(folder):
    return DATA / "broken.avif"


BAD = {
    "missing": (lambda folder: folder / "none.png", "does not exist"),
    "long name": (lambda folder: folder / ("x" * 5000), "cannot be reached"),
    "no name": (lambda folder: folder / "a\0b", "cannot be reached"),
    "broken": (broken, "cut short or damaged"),
    "a folder": (lambda folder: folder, "is a folder"),
    "text": (text, "not an image"),
    "empty": (empty, "not an image"),
    "truncated": (truncated, "cut short"),
    "too large": (bomb, "scale it down"),
    "much too large": (panorama, "scale it down"),
    "an address": (address, "is an address on the web, and only local files are read; download it first"),
    "a pipe": (pipe, "not a regular file"),
    "a program": (program, "not an image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_explained(tmp_path, kind):
    make, message = BAD[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message) as caught:
            load_image(path := make(tmp_path))
    assert "\n" not in str(caught.value) and repr(Path(path).name)[1:-1] in str(caught.value)


def test_size_is_checked_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 50)
    two_halves().save(tmp_path / "image.png")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="more than 50"):
        load_image(tmp_path / "image.png")


def test_a_photograph_of_100_megapixels_is_scaled_while_it_is_decoded(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = two_halves().resize((12000, 8400), Image.Resampling.NEAREST)
    picture.save(tmp_path / "large.jpg", exif=exif, quality=30)
    decoded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(image.size) or load(image))
    loaded = load_image(tmp_path / "large.jpg")
    assert loaded.size == (4200, 6000) and max(width * height for width, height in decoded) == 4200 * 6000
    assert near(loaded.getpixel((2100, 20)), RED) and near(loaded.getpixel((2100, 5980)), BLUE)


@pytest.mark.parametrize(
    "size, scale", [((8002, 8000), 2), ((16000, 16000), 2), ((1000, 65500), 2), ((16100, 16000), 4)]
)
def test_a_large_jpeg_is_scaled_no_further_than_needed(size, scale):
    assert images._scaled(size) == (size[0] // scale, size[1] // scale)


def test_a_png_of_100_megapixels_is_read(tmp_path):
    Image.new("1", (10000, 10000), 1).save(tmp_path / "large.png")
    assert load_image(tmp_path / "large.png").getpixel((9999, 9999)) == (255, 255, 255)


def heic(**options: bytes) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed; make test-extras has it")
    file = io.BytesIO()
    pillow_heif.from_pillow(two_halves()).save(file, quality=95, **options)
    return file.getvalue()


def test_heic(tmp_path):
    (tmp_path / "photo.HEIC").write_bytes(heic())
    before = set(Image.OPEN)
    loaded = load_image(tmp_path / "photo.HEIC")
    assert loaded.mode == "RGB" and loaded.size == (40, 20) and set(Image.OPEN) == before
    assert near(loaded.getpixel((5, 10)), RED) and near(loaded.getpixel((35, 10)), BLUE)


def test_a_heic_photograph_is_set_upright_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    loaded = decode_image(heic(exif=exif.tobytes()), "turned.heic")
    assert loaded.size == (20, 40) and near(loaded.getpixel((10, 5)), RED)


def test_broken_and_large_heic_are_explained(monkeypatch):
    data = heic()
    with pytest.raises(ValueError, match=r"half\.heic cannot be read"):
        decode_image(data[: len(data) // 2], "half.heic")
    monkeypatch.setattr(images, "MAX_PIXELS", 50)
    with pytest.raises(ValueError, match="more than 50"):
        decode_image(data, "large.heic")


def test_heic_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic")
    with pytest.raises(ValueError, match=r"photo.heic is a HEIC image.*pip install 'zooprune\[heic\]'"):
        load_image(tmp_path / "photo.heic")


@cache
def saved(form: str, mode: str) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file, form, exif=exif)
    return file.getvalue()


@settings(max_examples=400, deadline=None)
@example(form="PNG", mode="L", cut=40, changes=[])
@given(
    form=st.sampled_from(FORMATS),
    mode=st.sampled_from(["RGB", "L"]),
    cut=st.integers(0, 1000),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
)
def test_a_damaged_file_gives_an_image_or_a_sentence_that_names_it(form, mode, cut, changes):
    data = bytearray(saved(form, mode))
    for place, value in changes:
        data[place % len(data)] = value
    if cut < 500:
        data = data[: cut % len(data)]
    try:
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("error")
            # Some damaged headers ask for much memory.
            patch.setattr(images, "MAX_PIXELS", 10**6)
            loaded = decode_image(bytes(data), "damaged-file")
    except ValueError as error:
        assert "damaged-file" in str(error) and "\n" not in str(error)
    else:
        assert loaded.mode == "RGB" and min(loaded.size) > 0
