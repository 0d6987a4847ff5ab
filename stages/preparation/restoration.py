"""Step 4: the HR face."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from deskpro.cache.files import sha256
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.extras import loading, optional
from deskpro.stages.base.files import IMAGE_SUFFIXES
from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.step import (
    Need,
    Outcome,
    Step,
    Unusable,
    encode,
    on_device,
    read_image,
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
        return Outcome(encode(self.restore(read_image(path), sample), "JPEG"))

    @abstractmethod
    def restore(self, face: Image.Image, sample: Sample) -> Image.Image:
        """The HR face of an RGB LR face."""


class Bicubic(_Restorer):
    """Bicubic enlargement. It restores nothing: a teacher then sees what the student sees."""

    params = ("size",)

    def restore(self, face: Image.Image, sample: Sample) -> Image.Image:
        size = self.settings.restoration.size
        return face.resize((size, size), Image.Resampling.BICUBIC)


class Spandrel(_Restorer):
    """A network that spandrel loads from a file, on the face enlarged bicubically to 512 × 512.

    GFPGAN (Wang et al., CVPR 2021), RestoreFormer (Wang et al., CVPR 2022), CodeFormer (Zhou et
    al., NeurIPS 2022), or any other from an RGB image to an RGB image.
    """

    needs = ("spandrel", "spandrel_extra_arches")
    files = (
        Need(
            "restoration.model",
            "the file of a face-restoration network: GFPGANv1.4.pth, 350 MB, Apache 2.0, from the "
            "releases of TencentARC/GFPGAN on GitHub, for one; or set "
            "prepare.restoration.method=bicubic, which restores nothing",
        ),
    )

    def load(self) -> None:
        option, model = "prepare.restoration.model", Path(str(self.settings.restoration.model))
        method = "prepare.restoration.method=spandrel"
        spandrel, extra = (optional(package, method) for package in self.needs)
        extra.install(ignore_duplicates=True)
        with loading(option, model, "a network that spandrel can load"):
            self.network: Any = spandrel.ModelLoader(device="cpu").load_from_file(model)
        channels = self.network.input_channels, self.network.output_channels
        if not isinstance(self.network, spandrel.ImageModelDescriptor) or channels != (3, 3):
            raise InputError(
                f"{option} {model}: {self.network.architecture.name} doesn't map an RGB image to "
                "an RGB image. Set it to the file of a face-restoration network"
            )
        self.weights = {"model": sha256(model)}
        self.torch_device = on_device(self.network, self.device)

    def __call__(self, samples: Sequence[Sample]) -> list[Outcome]:
        # One after the other: the noise of each is drawn from torch's one random state.
        run = super().__call__
        return [outcome for sample in samples for outcome in run([sample])]

    def restore(self, face: Image.Image, sample: Sample) -> Image.Image:
        import torch

        face = face.resize((FACE_SIDE, FACE_SIDE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(face)).permute(2, 0, 1)[None].float() / 255
        seed = hashlib.sha256(sample.id.encode(errors="surrogateescape")).digest()[:6]
        devices = [self.torch_device] if self.torch_device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(int.from_bytes(seed))
            restored = run_network(self.network, pixels.to(self.torch_device))
        rounded = (restored[0].permute(1, 2, 0) * 255).round().clamp(0, 255)
        return Image.fromarray(rounded.to(torch.uint8).cpu().numpy())


def run_network(network: Any, pixels: Any) -> Any:
    """A spandrel network on images in its training range: float [1, 3, H, W] in 0..1, in and out.

    GFPGAN and CodeFormer are made for −1..1; spandrel leaves that to its caller.
    """
    if network.architecture.id in ("GFPGAN", "CodeFormer"):
        return (network.model(2 * pixels - 1)[0] + 1) / 2
    return network(pixels)


class HighResolution(_Restorer):
    """The face cut from an HR body image of the same scene, where the dataset has such images."""

    reads = ("lr_face", "imgs")
    params = ("size",)
    files = (
        Need(
            "restoration.pictures",
            "the folder of the HR body images, below it the paths of the raw ones",
            Path.is_dir,
        ),
    )

    def load(self) -> None:
        self.folder = Path(str(self.settings.restoration.pictures))

    def inputs(self, sample: Sample) -> list[Path]:
        return [*super().inputs(sample), self._image(sample)]

    def _image(self, sample: Sample) -> Path:
        upper = [suffix.upper() for suffix in IMAGE_SUFFIXES]
        suffixes = (sample.source.suffix, *sorted(IMAGE_SUFFIXES), *sorted(upper))
        return self.beside(self.folder, sample, suffixes)

    def restore(self, face: Image.Image, sample: Sample) -> Image.Image:
        if sample.facts.get("left") is None:
            raise Unusable(f"{sample.id}: no face box is known. Add face to prepare.steps")
        left, top, side = (sample.facts[name] for name in ("left", "top", "side"))
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
