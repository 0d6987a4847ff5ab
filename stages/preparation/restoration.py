"""Step 4: the HR face."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deskpro.cache.files import sha256
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.prepare_options import Restoration
from deskpro.stages.data.layouts import IMAGE_SUFFIXES
from deskpro.stages.preparation.faces import Box
from deskpro.stages.preparation.samples import Places, Sample
from deskpro.stages.preparation.step import (
    Outcome,
    Step,
    Unusable,
    jpeg,
    optional,
    outcomes,
    read_image,
)

FACE_SIDE = 512
"""Side that face-restoration networks are made for, in pixels."""

_ASPECT = 0.03
"""How far the shapes of an HR image and its body image may be apart."""


class _Restorer(ABC):
    """What the methods share: an HR face for every LR face that there is."""

    name = "restoration"
    places: Places

    def needs(self, sample: Sample) -> Sequence[Path]:
        return [self.places.lr_face(sample.id)]

    def makes(self, sample: Sample) -> Sequence[Path]:
        return [self.places.hr_face(sample.id)]

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        return outcomes(self._one, samples)

    def _one(self, sample: Sample) -> Outcome:
        path = self.places.lr_face(sample.id)
        if not path.is_file():
            return Outcome()
        restored = self.restore(read_image(path), sample)
        return Outcome({self.places.hr_face(sample.id): jpeg(restored)})

    @abstractmethod
    def restore(self, face: Image.Image, sample: Sample) -> Image.Image:
        """The HR face of an LR face, RGB."""


class Bicubic(_Restorer):
    """Enlarged bicubically. It restores nothing: a teacher then sees what the student sees."""

    def __init__(self, options: Restoration, places: Places, source: Path | None, device: str,
                 box: Callable[[str], Box | None]) -> None:  # fmt: skip
        self.places, self.size = places, options.size

    def provenance(self) -> Mapping[str, object]:
        return {"method": "bicubic", "size": self.size, "version": 1}

    def restore(self, face: Image.Image, sample: Sample) -> Image.Image:
        return face.resize((self.size, self.size), Image.Resampling.BICUBIC)


class Spandrel(_Restorer):
    """A network that spandrel loads from a file, on the face enlarged bicubically to 512 × 512.

    GFPGAN (Wang et al., CVPR 2021), RestoreFormer (Wang et al., CVPR 2022), CodeFormer (Zhou et
    al., NeurIPS 2022), or any other that takes and gives an RGB image.
    """

    def __init__(self, options: Restoration, places: Places, source: Path | None, device: str,
                 box: Callable[[str], Box | None]) -> None:  # fmt: skip
        if options.model is None:
            raise InputError(
                "prepare.restoration.model: needed by the method spandrel. Set it to the file of a "
                "face-restoration network"
            )
        if not options.model.is_file():
            raise InputError(f"{options.model}: no such file. Set prepare.restoration.model")
        spandrel = optional("spandrel", "prepare.restoration.method=spandrel")
        extra = optional("spandrel_extra_arches", "prepare.restoration.method=spandrel")
        import torch

        self.torch: Any = torch
        self.places, self.device = places, device
        extra.install(ignore_duplicates=True)
        try:
            loaded = spandrel.ModelLoader(device="cpu").load_from_file(options.model)
        # Whatever a broken file makes a loader raise is told in one line.
        except Exception as error:  # noqa: BLE001
            why = " ".join(str(error).split())[:300] or type(error).__name__
            raise InputError(
                f"{options.model}: no network that spandrel can load: {why}. Set "
                "prepare.restoration.model"
            ) from None
        if not isinstance(loaded, spandrel.ImageModelDescriptor) or (
            loaded.input_channels, loaded.output_channels
        ) != (3, 3):  # fmt: skip
            raise InputError(
                f"{options.model}: {loaded.architecture.name} doesn't make an image of an image. "
                "Set prepare.restoration.model to a face-restoration network"
            )
        self.network = loaded.to(device).eval()
        self.digest = sha256(options.model)

    def provenance(self) -> Mapping[str, object]:
        return {"method": "spandrel", "model": self.digest, "version": 1}

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        # One after the other: the noise of each is drawn from torch's one random state.
        return [outcome for sample in samples for outcome in outcomes(self._one, [sample])]

    def restore(self, face: Image.Image, sample: Sample) -> Image.Image:
        torch = self.torch
        face = face.resize((FACE_SIDE, FACE_SIDE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(face)).permute(2, 0, 1)[None].float() / 255
        devices = [self.device] if self.device.startswith("cuda") else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(_seed(sample.id))
            restored = run_network(self.network, pixels.to(self.device))
        rounded = (restored[0].permute(1, 2, 0) * 255).round().clamp(0, 255)
        return Image.fromarray(rounded.to(torch.uint8).cpu().numpy())


class HighResolution(_Restorer):
    """The face cut from an HR body image of the same scene, where the dataset has such."""

    def __init__(self, options: Restoration, places: Places, source: Path | None, device: str,
                 box: Callable[[str], Box | None]) -> None:  # fmt: skip
        if options.pictures is None or not options.pictures.is_dir():
            raise InputError(
                f"prepare.restoration.pictures {options.pictures}: no such folder. The method "
                "pictures needs the HR body images there, below it the paths of the raw ones"
            )
        self.folder, self.places, self.source, self.box = options.pictures, places, source, box
        self.size = options.size

    def provenance(self) -> Mapping[str, object]:
        return {"method": "pictures", "size": self.size, "version": 1}

    def needs(self, sample: Sample) -> Sequence[Path]:
        return [
            self.places.lr_face(sample.id),
            self.places.body(sample.id),
            self._image(sample),
        ]

    def _image(self, sample: Sample) -> Path:
        below = Path(sample.id)
        if self.source is not None and sample.source.is_relative_to(self.source):
            below = sample.source.relative_to(self.source)
        suffixes = [
            below.suffix,
            *sorted(IMAGE_SUFFIXES),
            *sorted(s.upper() for s in IMAGE_SUFFIXES),
        ]
        ways = [(self.folder / below).with_suffix(suffix) for suffix in suffixes]
        return next((way for way in ways if way.is_file()), ways[0])

    def restore(self, face: Image.Image, sample: Sample) -> Image.Image:
        path, box = self._image(sample), self.box(sample.id)
        if box is None:
            raise Unusable(f"{sample.id}: its face box isn't known; add face to prepare.steps")
        body, large = read_image(self.places.body(sample.id)), read_image(path)
        across, down = large.width / body.width, large.height / body.height
        if abs(across / down - 1) > _ASPECT:
            raise Unusable(
                f"{path}: HR image of {large.width}×{large.height} pixels has another shape than "
                f"its body image of {body.width}×{body.height}"
            )
        edges = (
            box.left * across,
            box.top * down,
            min((box.left + box.side) * across, large.width),
            min((box.top + box.side) * down, large.height),
        )
        return large.resize((self.size, self.size), Image.Resampling.BICUBIC, edges)


def run_network(network: Any, pixels: Any) -> Any:
    """A spandrel network on images as it was trained: float [1, 3, H, W] in 0..1, in and out.

    GFPGAN and CodeFormer are made for −1..1; spandrel's own call leaves that to its caller.
    """
    if network.architecture.id in ("GFPGAN", "CodeFormer"):
        return (network.model(2 * pixels - 1)[0] + 1) / 2
    return network(pixels)


RESTORERS: dict[
    str, Callable[[Restoration, Places, Path | None, str, Callable[[str], Box | None]], Step]
] = {"bicubic": Bicubic, "spandrel": Spandrel, "pictures": HighResolution}
"""By name; a restorer is made of its options, the places of files, the raw dataset, the device, and
the face box by sample id."""


def _seed(id_: str) -> int:
    return int.from_bytes(hashlib.sha256(id_.encode(errors="surrogateescape")).digest()[:6])
