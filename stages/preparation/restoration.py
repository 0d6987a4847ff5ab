"""Step 4: the HR face."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from deskpro.cache.files import sha256
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.prepare_options import Prepare
from deskpro.stages.data.layouts import IMAGE_SUFFIXES
from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.step import (
    Outcome,
    Step,
    Unusable,
    jpeg,
    on_device,
    one_line,
    optional,
    read_image,
    require_model,
)

FACE_SIDE = 512
"""Side that face-restoration networks are made for, in pixels."""

_ASPECT = 0.03
"""Allowed relative difference in shape between an HR image and its body image."""


class _Restorer(Step):
    """What the methods share: an HR face for every LR face."""

    name, writes = "restoration", "hr_face"
    reads: ClassVar[tuple[str, ...]] = ("lr_face",)

    def make(self, sample: Sample) -> Outcome:
        path = self.path("lr_face", sample)
        if not path.is_file():
            return Outcome()
        restored = self.restore(read_image(path), sample)
        return Outcome(jpeg(restored))

    @abstractmethod
    def restore(self, face: Image.Image, sample: Sample) -> Image.Image:
        """The HR face of an RGB LR face."""


class Bicubic(_Restorer):
    """Bicubic enlargement. It restores nothing: a teacher then sees what the student sees."""

    def provenance(self) -> Mapping[str, object]:
        return {"method": "bicubic", "size": self.settings.restoration.size, "version": 1}

    def restore(self, face: Image.Image, sample: Sample) -> Image.Image:
        size = self.settings.restoration.size
        return face.resize((size, size), Image.Resampling.BICUBIC)


class Spandrel(_Restorer):
    """A network that spandrel loads from a file, on the face enlarged bicubically to 512 × 512.

    GFPGAN (Wang et al., CVPR 2021), RestoreFormer (Wang et al., CVPR 2022), CodeFormer (Zhou et
    al., NeurIPS 2022), or any other from an RGB image to an RGB image.
    """

    needs = ("spandrel", "spandrel_extra_arches")

    def __init__(self, settings: Prepare, root: Path, device: str) -> None:
        super().__init__(settings, root, device)
        option, what = "prepare.restoration.model", "the file of a face-restoration network"
        model = require_model(settings.restoration.model, option, what)
        spandrel = optional("spandrel", "prepare.restoration.method=spandrel")
        extra = optional("spandrel_extra_arches", "prepare.restoration.method=spandrel")
        extra.install(ignore_duplicates=True)
        try:
            self.network: Any = spandrel.ModelLoader(device="cpu").load_from_file(model)
        except Exception as error:  # noqa: BLE001 — loaders raise anything for a broken file
            raise InputError(
                f"{option} {model}: no network that spandrel can load: {one_line(error)}. Set it "
                f"to {what}"
            ) from None
        channels = self.network.input_channels, self.network.output_channels
        if not isinstance(self.network, spandrel.ImageModelDescriptor) or channels != (3, 3):
            raise InputError(
                f"{option} {model}: {self.network.architecture.name} doesn't map an RGB image to "
                f"an RGB image. Set it to {what}"
            )
        self.digest = sha256(model)
        self.torch_device = on_device(self.network, device)

    def provenance(self) -> Mapping[str, object]:
        return {"method": "spandrel", "model": self.digest, "version": 1}

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        # One after the other: the noise of each is drawn from torch's one random state.
        return [outcome for sample in samples for outcome in Step.__call__(self, [sample])]

    def restore(self, face: Image.Image, sample: Sample) -> Image.Image:
        import torch

        face = face.resize((FACE_SIDE, FACE_SIDE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(face)).permute(2, 0, 1)[None].float() / 255
        devices = [self.torch_device] if self.torch_device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(_seed(sample.id))
            restored = run_network(self.network, pixels.to(self.torch_device))
        rounded = (restored[0].permute(1, 2, 0) * 255).round().clamp(0, 255)
        return Image.fromarray(rounded.to(torch.uint8).cpu().numpy())


class HighResolution(_Restorer):
    """The face cut from an HR body image of the same scene, where the dataset has such images."""

    reads = ("lr_face", "imgs")

    def __init__(self, settings: Prepare, root: Path, device: str) -> None:
        super().__init__(settings, root, device)
        folder = settings.restoration.pictures
        if folder is None or not folder.is_dir():
            raise InputError(
                f"prepare.restoration.pictures {folder}: no such folder. Set it to the folder of "
                "the HR body images, below it the paths of the raw ones"
            )
        self.folder = folder

    def provenance(self) -> Mapping[str, object]:
        return {"method": "pictures", "size": self.settings.restoration.size, "version": 1}

    def inputs(self, sample: Sample) -> list[Path]:
        return [*super().inputs(sample), self._image(sample)]

    def _image(self, sample: Sample) -> Path:
        below, root = Path(sample.id), self.settings.root
        if root is not None and sample.source.is_relative_to(root):
            below = sample.source.relative_to(root)
        lower = sorted(IMAGE_SUFFIXES)
        suffixes = [below.suffix, *lower, *(suffix.upper() for suffix in lower)]
        files = [(self.folder / below).with_suffix(suffix) for suffix in suffixes]
        return next((file for file in files if file.is_file()), files[0])

    def restore(self, face: Image.Image, sample: Sample) -> Image.Image:
        left, top, side = (sample.facts.get(name) for name in ("left", "top", "side"))
        if left is None or top is None or side is None:
            raise Unusable(f"{sample.id}: no face box is known. Add face to prepare.steps")
        path, size = self._image(sample), self.settings.restoration.size
        body, large = read_image(self.path("imgs", sample)), read_image(path)
        across, down = large.width / body.width, large.height / body.height
        if abs(across / down - 1) > _ASPECT:
            raise Unusable(
                f"{path}: HR image of {large.width}×{large.height} pixels has another shape than "
                f"its body image of {body.width}×{body.height}"
            )
        edges = (
            left * across,
            top * down,
            min((left + side) * across, large.width),
            min((top + side) * down, large.height),
        )
        return large.resize((size, size), Image.Resampling.BICUBIC, edges)


def run_network(network: Any, pixels: Any) -> Any:
    """A spandrel network on images in its training range: float [1, 3, H, W] in 0..1, in and out.

    GFPGAN and CodeFormer are made for −1..1; spandrel leaves that to its caller.
    """
    if network.architecture.id in ("GFPGAN", "CodeFormer"):
        return (network.model(2 * pixels - 1)[0] + 1) / 2
    return network(pixels)


RESTORERS: dict[str, type[Step]] = {
    "bicubic": Bicubic,
    "spandrel": Spandrel,
    "pictures": HighResolution,
}


def _seed(id_: str) -> int:
    return int.from_bytes(hashlib.sha256(id_.encode(errors="surrogateescape")).digest()[:6])
