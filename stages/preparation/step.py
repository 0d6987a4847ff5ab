"""What the methods of all steps share: from some files of an image to others, in batches."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.prepare_options import Prepare
from deskpro.stages.preparation.samples import Sample, prepared_path


@dataclass(frozen=True)
class Outcome:
    """What a step computed for an image.

    content: of the step's file; None for no file. facts: numbers and texts for prepare.csv.
    problem: why the image cannot be used.
    """

    content: bytes | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


class Step(ABC):
    """A method of a step. To add one: its class, and a row in the dict of its module.

    Another process builds it from the same arguments: a pickled step carries no network.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    """Folders of the prepared set whose file of an image the result depends on."""
    writes: ClassVar[str]
    """The folder that the step's files go to."""
    does: ClassVar[str]
    """The first line of the docstring, for `prepare --explain`."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Packages beyond those of the pipeline."""

    def __init_subclass__(cls) -> None:
        cls.does = (cls.__doc__ or "").strip().partition("\n")[0]

    def __init__(self, settings: Prepare, root: Path, device: str) -> None:
        """root: the prepared set; device: auto, cpu, cuda or cuda:N. Raises InputError."""
        self.settings, self.root, self.device = settings, root, device

    def __reduce__(self) -> tuple[type[Step], tuple[Prepare, Path, str]]:
        return type(self), (self.settings, self.root, self.device)

    def worker(self) -> Step:
        """What maps samples to outcomes: this step here, one built again in another process."""
        return self

    def path(self, kind: str, sample: Sample) -> Path:
        """The file of an image in a folder of the prepared set."""
        return prepared_path(self.root, kind, sample.id)

    def inputs(self, sample: Sample) -> list[Path]:
        """The files of an image that its result depends on."""
        return [self.path(kind, sample) for kind in self.reads]

    @abstractmethod
    def provenance(self) -> Mapping[str, object]:
        """What all results depend on: options, digests of weights, version of the code."""

    @abstractmethod
    def make(self, sample: Sample) -> Outcome:
        """The outcome for one image. Raises Unusable."""

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        """An outcome for each image; whatever is wrong with one is its problem, never an error."""
        results = each(self.make, samples)
        return [Outcome(problem=str(r)) if isinstance(r, Unusable) else r for r in results]


class Unusable(Exception):
    """A file cannot be used; the message says why."""


def read_image(path: Path) -> Image.Image:
    """A photograph, RGB, upright. Raises Unusable."""
    image = upright(path)
    if image.mode[0] in "IF":  # pillow would clip them to white
        raise Unusable(f"{path}: more than 8 bits a channel ({image.mode}); save it with 8")
    return image.convert("RGB")


def upright(path: Path) -> Image.Image:
    """An image in the mode of its file, turned as its EXIF says. Raises Unusable."""
    try:
        with Image.open(path) as opened:
            opened.load()
            return ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise Unusable(f"{path}: missing") from None
    except UnidentifiedImageError:
        raise Unusable(f"{path}: unreadable image: not an image file") from None
    except (OSError, RuntimeError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unusable(f"{path}: unreadable image: {one_line(error)}") from None


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
    """The result of `work` for each image, or why there is none; in several threads."""

    def attempt(sample: Sample) -> T | Unusable:
        try:
            return work(sample)
        except Unusable as error:
            return error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(attempt, samples))


def optional(module: str, option: str) -> Any:
    """A library that only some methods need. Raises InputError where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise InputError(
                f"{option} needs {module}, which cannot be imported: {error}"
            ) from None
        raise InputError(
            f"{option} needs the package {module}, which is not installed. Type: "
            "pip install '.[prepare]'"
        ) from None


def require_model(path: Path | None, option: str, what: str) -> Path:
    """The file that `option` names. Raises InputError where there is none; what: it must be."""
    if path is None:
        raise InputError(f"{option}: not set. Set it to {what}")
    if not path.is_file():
        raise InputError(f"{option} {path}: no such file. Set it to {what}")
    return path


def on_device(network: Any, name: str) -> Any:
    """Put a torch network in evaluation mode on a device; returns the device."""
    from deskpro.stages.base.distributed import pick_device

    device = pick_device(name)
    network.to(device).eval()
    return device


def one_line(error: Exception) -> str:
    """An error of a library, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
