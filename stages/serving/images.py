"""The forms in which images are given: files, PIL images and arrays; what is unclear is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.images import UNREADABLE, read_image, to_rgb

COLORS = ("rgb", "bgr")
_ALLOWED = "a path, a PIL image or a uint8 array H×W×3"


class Images:
    """Images in any of the forms, checked at once and decoded one by one.

    Item i is a PIL image, RGB and upright, or None where there is none.

    Args:
        given: an image, a list of images, or a uint8 array [N, H, W, 3] or [N, 3, H, W].
        name: what the images are, for errors, such as "bodies".
        color: order of the channels of arrays; files and PIL images know theirs.
        gaps: whether None may stand in the place of an image.

    Raises:
        InputError: it is none of these forms, or an array could be read in two ways.
    """

    def __init__(self, given: Any, name: str, color: str = "rgb", *, gaps: bool = False) -> None:
        if color not in COLORS:
            raise InputError(f"color is {color!r}; must be one of {', '.join(COLORS)}")
        self.name, self.color = name, color
        self.items = self._list(given)
        for i, item in enumerate(self.items):
            if item is not None or not gaps:
                self._check(i, item)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Image.Image | None:
        item = self.items[i]
        if item is None:
            return None
        if isinstance(item, np.ndarray):
            rgb = item if self.color == "rgb" else item[..., ::-1]
            return Image.fromarray(np.ascontiguousarray(rgb))
        try:
            return read_image(item) if isinstance(item, str | Path) else _upright(item)
        except UNREADABLE as error:
            raise InputError(f"{self.where(i)}: unreadable image: {error}") from None

    def where(self, i: int) -> str:
        """What names an image in an error: its path, or its place."""
        item = self.items[i]
        return str(item) if isinstance(item, str | Path) else f"{self.name}[{i}]"

    def _list(self, given: Any) -> Sequence[Any]:
        if isinstance(given, str | Path | Image.Image):
            return [given]
        if isinstance(given, np.ndarray):
            return [given] if given.ndim == 3 else [*self._batch(given)]
        if isinstance(given, Iterable) and not hasattr(given, "__array__"):
            return [*given]
        found = type(given).__name__
        raise InputError(f"{self.name}: a {found}; must be {_ALLOWED}, or a list or batch of them")

    def _batch(self, given: np.ndarray) -> Iterator[np.ndarray]:
        """The images of an array of four dimensions, each H×W×3."""
        last, second = (given.ndim == 4 and given.shape[axis] == 3 for axis in (-1, 1))
        if last == second:
            why = "both N×H×W×3 and N×3×H×W" if last else "neither N×H×W×3 nor N×3×H×W"
            raise InputError(
                f"{self.name}: an array of shape {given.shape} is {why}; give a list of arrays "
                "H×W×3, or a batch of one of these shapes"
            )
        return iter(given if last else given.transpose(0, 2, 3, 1))

    def _check(self, i: int, item: Any) -> None:
        where = self.where(i)
        if isinstance(item, Image.Image) and 0 in item.size:
            raise InputError(f"{where}: an image of {item.width} × {item.height}, without a pixel")
        if isinstance(item, str | Path | Image.Image):
            return
        if not isinstance(item, np.ndarray):
            raise InputError(f"{where}: a {type(item).__name__}; must be {_ALLOWED}")
        if item.dtype != np.uint8:
            raise InputError(
                f"{where}: an array of {item.dtype}; must be uint8, 0 to 255. Of 0..1 make it by "
                "(255 * array).round().astype('uint8')"
            )
        if item.ndim != 3 or item.shape[2] != 3 or 0 in item.shape:
            raise InputError(
                f"{where}: an array of shape {item.shape}; must be H×W×3, three channels"
            )


def _upright(image: Image.Image) -> Image.Image:
    """An opened image as `read_image` gives it for its file."""
    return to_rgb(ImageOps.exif_transpose(image))
