"""The one way to open an image file: decoded to its end, upright, 8 bits a channel.

What one stage refuses, all refuse; what one turns, all turn.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

UNREADABLE = (OSError, RuntimeError, SyntaxError, ValueError)
"""What pillow raises for files that it can't decode."""


def open_image(source: Path | str | IO[bytes]) -> Image.Image:
    """An image in the mode of its file, decoded to its end and turned as its EXIF says.

    Raises:
        OSError, RuntimeError, SyntaxError, ValueError: it doesn't decode.
    """
    try:
        with Image.open(source) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise ValueError("not an image file") from None
    except struct.error as error:
        raise ValueError(f"its EXIF can't be read ({error}); save it without") from None
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None


def read_image(source: Path | str | IO[bytes]) -> Image.Image:
    """An image as `open_image` gives it, RGB.

    Raises:
        ValueError: it has more than 8 bits a channel, which pillow would clip to white.
        OSError, RuntimeError, SyntaxError: it doesn't decode.
    """
    return to_rgb(open_image(source))


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image, RGB. Raises ValueError, as `read_image` does."""
    if image.mode[0] in "IF":
        raise ValueError(f"more than 8 bits a channel ({image.mode}); save it with 8")
    return image.convert("RGB")
