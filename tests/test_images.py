"""One image in many encodings: every stage sees the same pixels, or refuses it alike."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deskpro.cache.file_index import FileIndex
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.images import read_image
from deskpro.stages.data.check import decode
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.data.loader import ImageDataset
from deskpro.stages.preparation import step

HEIGHT, WIDTH = 48, 32
SIZE = (HEIGHT, WIDTH)
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
RGB = Image.fromarray(PIXELS)
EXIF_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip
"""EXIF orientation → what was done to the image before it was stored."""


def save(mode: str, suffix: str, **options: object) -> Callable[[Path], np.ndarray]:
    """Writes the image in a mode; returns the pixels that a reader must see."""

    def write(path: Path) -> np.ndarray:
        image = RGB.convert(mode)
        image.save(path.with_suffix(suffix), **options)
        return np.asarray(image.convert("RGB"))

    write.suffix = suffix  # type: ignore[attr-defined]
    return write


def turned(orientation: int) -> Callable[[Path], np.ndarray]:
    def write(path: Path) -> np.ndarray:
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = RGB if orientation == 1 else RGB.transpose(EXIF_TURNS[orientation])
        stored.save(path.with_suffix(".png"), exif=exif)
        return PIXELS

    write.suffix = ".png"  # type: ignore[attr-defined]
    return write


ENCODINGS = {
    "PNG": save("RGB", ".png"),
    "PNG, grey": save("L", ".png"),
    "PNG, palette": save("P", ".png"),
    "PNG, alpha": save("RGBA", ".png"),
    "PNG, 1 bit": save("1", ".png"),
    "BMP": save("RGB", ".bmp"),
    "WebP": save("RGB", ".webp", lossless=True),
    "TIFF": save("RGB", ".tif"),
    **{f"EXIF {number}": turned(number) for number in range(1, 9)},
}
REFUSED = {"16 bits": "I;16", "32 bits": "I", "floats": "F"}


def seen(path: Path) -> dict[str, np.ndarray]:
    """The image as each stage sees it: uint8 [H, W, 3]."""
    table = pd.DataFrame({"imgs": [str(path)]})
    found = {"prepare": np.asarray(step.read_image(path))}
    for name, quick in (("evaluation", ()), ("training", ("imgs",))):
        pixels = ImageDataset(table, {"imgs": SIZE}, quick=quick)[0, 0]["imgs"]
        found[name] = pixels.permute(1, 2, 0).numpy()
    return found


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_stage_sees_the_same_pixels(name: str, tmp_path: Path) -> None:
    write = ENCODINGS[name]
    path = (tmp_path / "image").with_suffix(write.suffix)  # type: ignore[attr-defined]
    expected = write(path)
    for pixels in seen(path).values():
        np.testing.assert_array_equal(pixels, expected)
    facts = FileIndex(tmp_path / "index").probe(
        [path], partial(decode, masks_below=[tmp_path / "mask"])
    )[str(path)]
    assert (facts.height, facts.width, facts.problem) == (*SIZE, None)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_is_turned_as_its_exif_says(
    orientation: int, options: dict[str, bool], tmp_path: Path
) -> None:
    path, exif = tmp_path / "image.jpg", Image.Exif()
    exif[0x0112] = orientation
    smooth = RGB.resize((4, 6)).resize((WIDTH, HEIGHT))  # JPEG keeps it nearly
    stored = smooth if orientation == 1 else smooth.transpose(EXIF_TURNS[orientation])
    stored.save(path, quality=100, subsampling=0, exif=exif, **options)
    for pixels in seen(path).values():
        gap = np.abs(pixels.astype(int) - np.asarray(smooth).astype(int))
        assert gap.max() <= 8


def test_a_jpeg_is_turned_as_its_xmp_says(tmp_path: Path) -> None:
    path, halves = tmp_path / "image.jpg", np.zeros((*SIZE, 3), np.uint8)
    halves[: HEIGHT // 2] = 255
    stored = Image.fromarray(halves).transpose(EXIF_TURNS[6])
    stored.save(path, quality=100, xmp=b'<rdf:Description tiff:Orientation="6"/>')
    for pixels in seen(path).values():
        assert np.abs(pixels.astype(int) - halves).max() <= 8


def test_an_image_whose_exif_is_broken_is_refused_by_name(tmp_path: Path) -> None:
    path, unit = tmp_path / "image.jpg", struct.pack("<HHIf", 0x0128, 11, 1, 2.5)
    entries = struct.pack("<HHHIHH", 2, 0x0112, 3, 1, 6, 0) + unit
    RGB.save(path, exif=b"Exif\0\0II*\0\x08\0\0\0" + entries + bytes(4))
    problem = FileIndex(tmp_path / "index").probe([path], partial(decode, masks_below=[]))
    assert "its EXIF can't be read" in str(problem[str(path)].problem)


def grey_png(bits: int, values: list[int]) -> bytes:
    """A PNG of one row, grey, of `bits` each."""
    joined = int("".join(f"{value:0{bits}b}" for value in values), 2)
    row = b"\0" + joined.to_bytes(len(values) * bits // 8, "big")
    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(row), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_label_map_holds_its_classes_or_is_refused(bits: int, tmp_path: Path) -> None:
    path, classes = tmp_path / "labels.png", [0, 1, 2, 3]
    path.write_bytes(grey_png(bits, classes))
    if bits == 8:
        np.testing.assert_array_equal(step.read_labels(path), [classes])
    else:  # pillow reads 0, 85, 170, 255 or 0, 17, 34, 51
        with pytest.raises(step.Unusable, match="label map of fewer than 8 bits"):
            step.read_labels(path)
    palette = Image.fromarray(np.array([classes], np.uint8), "L").convert("P")
    palette.save(path, bits=bits)
    np.testing.assert_array_equal(step.read_labels(path), [classes])


@pytest.mark.parametrize("name", REFUSED)
def test_more_than_8_bits_are_refused_by_every_stage(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    values = np.arange(HEIGHT * WIDTH).reshape(SIZE) * 40
    Image.fromarray(values.astype(np.uint16)).convert(REFUSED[name]).save(path)
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        read_image(path)
    with pytest.raises(step.Unusable, match="more than 8 bits a channel"):
        step.read_image(path)
    table = pd.DataFrame({"imgs": [str(path)]})
    for quick in ((), ("imgs",)):
        with pytest.raises(InputError, match="more than 8 bits a channel"):
            ImageDataset(table, {"imgs": SIZE}, quick=quick)[0, 0]
    problem = (
        FileIndex(tmp_path / "index")
        .probe([path], partial(decode, masks_below=[tmp_path / "mask"]))[str(path)]
        .problem
    )
    assert problem is not None
    assert "more than 8 bits a channel" in problem


@pytest.mark.parametrize(
    ("dataset", "name", "camera"),
    [
        ("market1501", "query/0002_c1s1_000451_03.jpg", 1),
        ("market1501", "query/0002_c11s1_000451_03.jpg", 11),
        ("market1501", "query/0002_c123s10_000451_03.jpg", 123),
        ("dukemtmc", "query/0001_c8_f0044158.jpg", 8),
        ("dukemtmc", "query/0001_c11_f0044158.jpg", 11),
        ("dukemtmc", "query/0001_c1x_f0044158.jpg", None),
        ("market1501", "query/0002_c1", None),
        ("deepchange", "train-set/P1_C11_x.jpg", 11),
        ("deepchange", "train-set/P1_C99999999999999999999_x.jpg", None),
    ],
)
def test_a_camera_is_read_whole_or_refused(dataset: str, name: str, camera: int | None) -> None:
    found = LAYOUTS[dataset].parse(name)
    assert (None if found is None else found.camid) == camera


@pytest.mark.parametrize("dataset", ["market1501", "dukemtmc", "ltcc", "vcclothes", "benchmark"])
def test_ten_thousand_drawn_names_are_parsed_back(dataset: str) -> None:
    shapes = {
        "market1501": "query/{pid}_c{cam}s{x}_{frame}_00.jpg",
        "dukemtmc": "query/{pid}_c{cam}_f{frame}.jpg",
        "ltcc": "query/{pid}_{x}_c{cam}_{frame}.png",
        "vcclothes": "query/{pid}-{cam}-{x}-{frame}.jpg",
        "benchmark": "query/{pid}_c{cam}_{frame}.jpg",
    }
    random = np.random.default_rng(1)
    digits = random.integers(1, 8, (10_000, 4))
    for row in digits:
        pid, cam, x, frame = (int(random.integers(10 ** (n - 1), 10**n)) for n in row)
        name = shapes[dataset].format(pid=pid, cam=cam, x=x, frame=frame)
        found = LAYOUTS[dataset].parse(name)
        assert found is not None
        assert (found.pid, found.camid) == (str(pid), cam)
