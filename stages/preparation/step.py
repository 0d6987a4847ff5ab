"""What the methods of all steps share: from some files of an image to others, in batches."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from deskpro.stages.base import images
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.extras import one_line
from deskpro.stages.base.prepare_options import Prepare
from deskpro.stages.preparation.samples import Sample, prepared_path
from deskpro.stages.preparation.schemes import SCHEMES


@dataclass(frozen=True)
class Outcome:
    """What a step computed for an image.

    content: of the step's file; None for no file. facts: numbers and texts for prepare.csv.
    problem: why the image cannot be used.
    """

    content: bytes | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def files(self, name: str) -> dict[str, str]:
        """The SHA-256 of the step's file by its name; empty for no file."""
        return {} if self.content is None else {name: hashlib.sha256(self.content).hexdigest()}


class Need(NamedTuple):
    """A file or folder that an option must name."""

    option: str
    """Below `prepare`."""
    what: str
    """What it must be: where it is published, its size and licence."""
    exists: Callable[[Path], bool] = Path.is_file

    def lacks(self, settings: Prepare) -> str | None:
        """What is wrong; None where the file is there."""
        value = attrgetter(self.option)(settings)
        if value is not None and self.exists(Path(value)):
            return None
        found = "not set" if value is None else f"{value} not found"
        return f"prepare.{self.option}: {found}. Set it to {self.what}"


class Step(ABC):
    """A method of a step. To add one: its class, and a row in `METHODS`.

    The first line of its docstring is shown by `prepare --explain`. Another process builds it from
    the same arguments: a pickled step carries no network.
    """

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]
    """Folders of the prepared set whose file of an image the result depends on."""
    writes: ClassVar[str]
    """The folder that the step's files go to."""
    params: ClassVar[tuple[str, ...]] = ()
    """Options of the step's section that all results depend on."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Packages beyond those of the pipeline."""
    files: ClassVar[tuple[Need, ...]] = ()
    """Files and folders that its options must name."""

    def __init__(self, settings: Prepare, root: Path, device: str) -> None:
        """root: the prepared set; device: auto, cpu, cuda or cuda:N. Raises InputError."""
        self.settings, self.root, self.device = settings, root, device
        self.scheme = SCHEMES[settings.parsing.scheme]
        self.weights: dict[str, object] = {}
        """Digests of the networks that `load` has loaded."""
        self.load()

    def load(self) -> None:  # noqa: B027  most methods need nothing
        """Load libraries and networks. Raises InputError."""

    def __reduce__(self) -> tuple[type[Step], tuple[Prepare, Path, str]]:
        return type(self), (self.settings, self.root, self.device)

    def worker(self) -> Step:
        """What maps samples to outcomes: this step here, one built again in another process."""
        return self

    def path(self, kind: str, sample: Sample) -> Path:
        """The file of an image in a folder of the prepared set."""
        return prepared_path(self.root, kind, sample.id)

    def beside(self, folder: Path, sample: Sample, suffixes: Iterable[str]) -> Path:
        """The file of an image in another folder, by its path in the raw or the prepared set."""
        paths, root = [Path(sample.id)], self.settings.root
        if root is not None and sample.source.is_relative_to(root):
            raw = sample.source.relative_to(root)
            below_imgs = [Path(*raw.parts[1:])] if raw.parts[0] == "imgs" else []
            paths = [raw, *below_imgs, *paths]
        files = [(folder / path).with_suffix(suffix) for path in paths for suffix in suffixes]
        return next(filter(Path.is_file, files), files[0])

    def inputs(self, sample: Sample) -> list[Path]:
        """The files of an image that its result depends on."""
        return [self.path(kind, sample) for kind in self.reads]

    def provenance(self) -> dict[str, object]:
        """What all results depend on: options, digests of weights, version of the code."""
        section = getattr(self.settings, self.name)
        options = {name: getattr(section, name) for name in ("method", *self.params)}
        classes = {"classes": self.scheme.classes} if "labels" in self.reads else {}
        return options | {"version": 1} | classes | self.weights

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
    """An image, RGB, upright. Raises Unusable."""
    return _usable(images.read_image, path)


def read_labels(path: Path) -> np.ndarray:
    """A label map: uint8 [H, W], the class of each pixel. Raises Unusable."""
    image, must = _usable(images.open_image, path), "must be one channel of 8 bits, the class"
    if image.mode not in ("L", "P"):
        raise Unusable(f"{path}: label map of mode {image.mode}; {must}")
    with Image.open(path) as header:
        # Pillow scales shades of 2 or 4 bits to 0..255, and inverts some of TIFF.
        if any("L;" in str(tile) for tile in header.tile):
            raise Unusable(f"{path}: label map of fewer than 8 bits, or inverted; {must}")
    return np.asarray(image)


def _usable(read: Callable[[Path], Image.Image], path: Path) -> Image.Image:
    try:
        return read(path)
    except FileNotFoundError:
        raise Unusable(f"{path}: missing") from None
    except images.UNREADABLE as error:
        raise Unusable(f"{path}: unreadable image: {one_line(error)}") from None


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    """An image as a file: PNG, or JPEG of high quality."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=95, subsampling=0)  # a PNG has neither
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


def require_files(methods: Iterable[type[Step]], settings: Prepare) -> None:
    """InputError with a line for each file or folder that any of the methods lacks."""
    missing = [need.lacks(settings) for method in methods for need in method.files]
    if lines := [*dict.fromkeys(filter(None, missing))]:
        raise InputError("\n".join(lines))


def on_device(network: Any, name: str) -> Any:
    """Put a torch network in evaluation mode on a device; returns the device."""
    from deskpro.stages.base.distributed import pick_device

    device = pick_device(name)
    network.to(device).eval()
    return device
