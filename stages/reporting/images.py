"""Images inside the page: small JPEGs as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

QUALITY = 82


class Thumbnails:
    """Data URIs of image files, each read once; None for a file that cannot be read."""

    def __init__(self, largest: dict[str, tuple[int, int]]) -> None:
        """largest: kind → width and height that an image is shrunk to fit; none is enlarged."""
        self.largest = largest
        self.missing = 0
        self._made: dict[tuple[str, str], str | None] = {}

    def __call__(self, kind: str, path: str | None) -> str | None:
        """The image of a file, or None where there is none that can be read."""
        if path is None:
            return None
        key = (kind, path)
        if key not in self._made:
            self._made[key] = self._read(Path(path), self.largest[kind])
            self.missing += self._made[key] is None
        return self._made[key]

    def _read(self, path: Path, size: tuple[int, int]) -> str | None:
        try:
            with Image.open(path) as opened:
                opened.draft("RGB", size)
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
        if image.width > size[0] or image.height > size[1]:
            image = ImageOps.contain(image, size, Image.Resampling.LANCZOS)
        return _jpeg(image)


def from_pixels(pixels: np.ndarray, *, drawn: bool = False) -> str:
    """The data URI of uint8 [3, H, W]; drawn: lines in it keep their colours."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return _jpeg(image, subsampling=0 if drawn else -1)


def _jpeg(image: Image.Image, subsampling: int = -1) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True, subsampling=subsampling)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
