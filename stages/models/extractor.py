"""A network with what it takes to give it images, and the features that it gives for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from deskpro.stages.base.names import KIND_OF
from deskpro.stages.base.progress import warn
from deskpro.stages.base.run_folder import ENCODER
from deskpro.stages.models.exported import ExportedStudent, read_settings
from deskpro.stages.models.osnet import OSNet
from deskpro.stages.models.student import Student, head_slices
from deskpro.stages.models.teacher import Teacher
from deskpro.stages.models.weights import (
    ModelInfo,
    load_osnet,
    load_student,
    load_teacher,
    read_metadata,
)


class NotFiniteError(Exception):
    """The feature of an image isn't finite: the weights are broken. row: its place in the batch."""

    def __init__(self, row: int) -> None:
        super().__init__(row)  # the arguments, for pickle
        self.row = row

    def __str__(self) -> str:
        return f"the feature of image {self.row} isn't finite"


@dataclass(frozen=True)
class FeatureExtractor:
    """A network, and what it takes to give it images."""

    network: Teacher | Student | OSNet | ExportedStudent
    info: ModelInfo
    heads: dict[str, slice]
    """Stream → its slice of the heads."""
    kinds: dict[str, str]
    """Stream → the kind of image that it sees."""
    sizes: dict[str, tuple[int, int]]
    """Kind of image → height and width."""
    normalised: bool = True
    """Whether it takes normalised images, float32; else pixels, uint8."""
    mirrored: bool = True
    """Whether calibration and fusion of `info` were fitted on features with the mirror image."""

    def fitted_for(self, flip: bool) -> FeatureExtractor:
        """Without a calibration of other features; flip: whether mirror images are added.

        Fitted weights of the streams are kept: they say how much each counts. A warning says so.
        """
        info = self.info
        if flip == self.mirrored or not (info.calibration or info.fusion):
            return self
        kept = "; the fitted weights of the streams are kept" if info.fusion else ""
        warn(
            f"eval.flip is {str(flip).lower()}, calibration and thresholds of held-out people are "
            f"of features {'with' if self.mirrored else 'without'} mirror images: scores have "
            f"neither{kept}"
        )
        return replace(self, info=replace(info, calibration=None))

    @property
    def needs(self) -> tuple[str, ...]:
        """The kinds of images of a test sample that must be readable, body images first."""
        return ("imgs", *(kind for kind in self.kinds.values() if kind != "imgs"))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of heads H and length D of a feature."""
        return max(part.stop for part in self.heads.values()), self.info.network["feature_dim"]

    def __call__(self, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The features of images by kind, before normalisation: float32 [B, H, D]."""
        if isinstance(self.network, Teacher):
            return self.network(images["hr_face"]).features.float()
        if isinstance(self.network, OSNet):
            return self.network(images["imgs"])
        if isinstance(self.network, ExportedStudent):
            return self.network({stream: images[kind] for stream, kind in self.kinds.items()})
        return self.network(images.get("lr_face"), images.get("imgs")).features.float()

    def describe(
        self, images: Mapping[str, torch.Tensor], missing: Mapping[str, torch.Tensor], flip: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The features of images as they are compared, without gradient.

        Args:
            images: by kind, as the network takes them, [B, 3, h, w].
            missing: by stream, which of them are not there, bool [B].
            flip: whether the feature of the mirrored image is added.

        Returns:
            raw, of the images alone, and features, each head of length 1: float32 [B, H, D] on the
            CPU. Heads of a missing image are 0.

        Raises:
            NotFiniteError: a feature isn't finite.
        """
        with torch.inference_mode():
            raw = summed = self(images)
            finite = torch.isfinite(raw).flatten(1).all(1)
            if not finite.all():
                raise NotFiniteError(int(finite.int().argmin()))
            if flip:
                summed = raw + self({kind: pixels.flip(3) for kind, pixels in images.items()})
            raw, features = raw.cpu(), nn.functional.normalize(summed, dim=2).cpu()
            for stream, absent in missing.items():
                raw[absent, self.heads[stream]] = 0
                features[absent, self.heads[stream]] = 0
        return raw, features


def open_extractor(
    path: Path,
    kind: str | None,
    face_size: tuple[int, int],
    body_size: tuple[int, int],
    device: torch.device,
) -> FeatureExtractor:
    """The network of a weights file: a student, or a teacher, which sees HR faces.

    An exported folder is opened by its encoder.json, in the place of a student's weights file; so
    is a file of torchreid's OSNet, as a student of bodies.

    Args:
        kind: "student", "teacher", or None for the student if the file has one, else the teacher.
        face_size, body_size: used where the file doesn't say on which its network was trained.
    """
    if path.name == ENCODER:
        return _open_exported(path, device)
    if kind != "teacher" and (found := load_osnet(path)) is not None:
        osnet, info = found
        kinds = {"body": KIND_OF["body"]}
        sizes = {"imgs": info.body_size or body_size}
        return FeatureExtractor(osnet.to(device), info, {"body": slice(0, 1)}, kinds, sizes)
    info = read_metadata(path, kind)
    faces = info.face_size or face_size
    sizes = {"lr_face": faces, "hr_face": faces, "imgs": info.body_size or body_size}
    if info.kind == "teacher":
        teacher, info = load_teacher(path)
        heads, kinds = {"face": slice(0, len(teacher.face_net.heads))}, {"face": "hr_face"}
        return FeatureExtractor(teacher.to(device), info, heads, kinds, sizes)
    student, info = load_student(path)
    kinds = {stream: KIND_OF[stream] for stream in student.heads}
    return FeatureExtractor(student.to(device), info, student.heads, kinds, sizes)


def _open_exported(path: Path, device: torch.device) -> FeatureExtractor:
    """The student of an exported folder. path: its encoder.json."""
    settings = read_settings(path)
    streams = settings.streams
    heads = {name: stream.heads for name, stream in streams.items()}
    sizes = {name: stream.size for name, stream in streams.items()}
    info = ModelInfo(
        "student",
        {"feature_dim": next(iter(streams.values())).dim},
        settings.student["identities"],
        None,
        sizes.get("face"),
        sizes.get("body"),
        heads,
        fusion=settings.fitted,
        calibration=settings.calibration,
    )
    return FeatureExtractor(
        ExportedStudent(path, settings, device),
        info,
        head_slices(heads),
        {name: KIND_OF[name] for name in streams},
        {KIND_OF[name]: size for name, size in sizes.items()},
        settings.normalise == "outside",
        settings.mirror,
    )
