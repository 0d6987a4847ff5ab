"""A step of preparation: from some files of an image to others, a batch of images at a time."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from deskpro.stages.base.errors import InputError
from deskpro.stages.preparation.samples import Sample


@dataclass(frozen=True)
class Outcome:
    """What a step made of an image."""

    files: Mapping[Path, bytes] = field(default_factory=dict)
    """Content by path; may be none of those that the step can make."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What is to be listed of it: numbers, texts."""
    problem: str | None = None
    """Why the image can't be used."""
    foreign: bool = False
    """Whether that is a file of somebody else's in the way, and not the image itself."""


class Step(Protocol):
    """One of the four steps, or the taking over of the bodies before them."""

    name: str

    def provenance(self) -> Mapping[str, object]:
        """By name, everything that all results depend on: options, weights, version of the code."""

    def needs(self, sample: Sample) -> Sequence[Path]:
        """The files of an image that its result depends on."""

    def makes(self, sample: Sample) -> Sequence[Path]:
        """The files that it may make of an image."""

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        """An outcome for each image. What is wrong with one is its problem, never an error."""


class Unusable(Exception):
    """A file that can't be used; the message says why."""


def read_image(path: Path) -> Image.Image:
    """A photograph, RGB, upright. Raises Unusable."""
    image = upright(path)
    if image.mode[0] in "IF":  # pillow would clip them to white
        raise Unusable(f"{path}: more than 8 bits a channel ({image.mode}); save it with 8")
    return image.convert("RGB")


def upright(path: Path) -> Image.Image:
    """An image as its file has it, turned as its EXIF says. Raises Unusable."""
    try:
        with Image.open(path) as opened:
            opened.load()
            return ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise Unusable(f"{path}: missing") from None
    except UnidentifiedImageError:
        raise Unusable(f"{path}: unreadable image: not an image file") from None
    except (OSError, RuntimeError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = " ".join(str(error).split())
        raise Unusable(f"{path}: unreadable image: {what}") from None


def read_labels(path: Path) -> np.ndarray:
    """A label map: uint8 [H, W]. Raises Unusable."""
    image = upright(path)
    if image.mode not in ("L", "P"):
        raise Unusable(
            f"{path}: label map of mode {image.mode}; must be one channel of 8 bits, the class"
        )
    return np.asarray(image)


def png(pixels: np.ndarray | Image.Image) -> bytes:
    """A PNG file of uint8 [H, W] or [H, W, 3]."""
    return _encoded(pixels, "PNG")


def jpeg(pixels: np.ndarray | Image.Image) -> bytes:
    """A JPEG file of uint8 [H, W, 3], of high quality."""
    return _encoded(pixels, "JPEG", quality=95, subsampling=0)


def _encoded(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


T = TypeVar("T")


def each(work: Callable[[Sample], T], samples: Sequence[Sample]) -> list[T | Unusable]:
    """What `work` makes of each image, or why it can't; images are decoded side by side."""

    def attempt(sample: Sample) -> T | Unusable:
        try:
            return work(sample)
        except Unusable as error:
            return error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(attempt, samples))


def outcomes(work: Callable[[Sample], Outcome], samples: Sequence[Sample]) -> list[Outcome]:
    """As `each`; what can't be used has a problem."""
    made = each(work, samples)
    return [Outcome(problem=str(one)) if isinstance(one, Unusable) else one for one in made]


def optional(module: str, what: str) -> ModuleType:
    """A library that only some methods need. Raises InputError where it isn't installed."""
    try:
        return import_module(module)
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise InputError(f"{what} needs {module}, which can't be imported: {error}") from None
        raise InputError(
            f"{what} needs the package {module}, which isn't installed. Type: "
            "pip install '.[prepare]'"
        ) from None
