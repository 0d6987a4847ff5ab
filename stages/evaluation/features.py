"""The features of every image of a split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.progress import bar
from deskpro.stages.data.loader import ImageDataset, images_of, iterate, load
from deskpro.stages.models.student import Student
from deskpro.stages.models.teacher import Teacher
from deskpro.stages.models.weights import ModelInfo, load_student, load_teacher, read_metadata


@dataclass(frozen=True)
class FeatureExtractor:
    """A network, and what it takes to give it images."""

    network: Teacher | Student
    info: ModelInfo
    heads: dict[str, slice]
    """Stream → its slice of the heads."""
    kinds: dict[str, str]
    """Stream → the kind of image that it sees."""
    sizes: dict[str, tuple[int, int]]
    """Kind of image → height and width."""

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
        return self.network(images.get("lr_face"), images.get("imgs")).features.float()


class FeatureBatch(NamedTuple):
    """The features of some rows of a table, float32 [n, H, D]; 0 where a stream's image is missing.

    raw: of the images alone. features: summed over image and mirror image if flipped, each of
    length 1.
    """

    rows: list[int]
    raw: torch.Tensor
    features: torch.Tensor


def open_extractor(
    path: Path,
    kind: str | None,
    face_size: tuple[int, int],
    body_size: tuple[int, int],
    device: torch.device,
) -> FeatureExtractor:
    """The network of a weights file: a student, or a teacher, which sees HR faces.

    Args:
        kind: "student", "teacher", or None for the student if the file has one, else the teacher.
        face_size, body_size: used where the file doesn't say on which its network was trained.
    """
    info = read_metadata(path, kind)
    faces = info.face_size or face_size
    sizes = {"lr_face": faces, "hr_face": faces, "imgs": info.body_size or body_size}
    if info.kind == "teacher":
        teacher, info = load_teacher(path)
        heads, kinds = {"face": slice(0, len(teacher.face_net.heads))}, {"face": "hr_face"}
        return FeatureExtractor(teacher.to(device), info, heads, kinds, sizes)
    student, info = load_student(path)
    seen = {"face": "lr_face", "body": "imgs"}
    kinds = {stream: seen[stream] for stream in student.heads}
    return FeatureExtractor(student.to(device), info, student.heads, kinds, sizes)


def extract_batches(
    extractor: FeatureExtractor,
    table: pd.DataFrame,
    batches: Sequence[Sequence[int]],
    *,
    flip: bool,
    workers: int,
    device: torch.device,
) -> Iterator[FeatureBatch]:
    """The features of batches of a table's rows, in evaluation mode and without gradient.

    Raises:
        InputError: a feature isn't finite.
    """
    kinds = extractor.kinds
    images = ImageDataset(table, {kind: extractor.sizes[kind] for kind in kinds.values()})
    wanted = [[(row, 0) for row in batch] for batch in batches]
    absent = {
        stream: torch.from_numpy(table[kind].isna().to_numpy(copy=True))
        for stream, kind in kinds.items()
    }
    total = sum(map(len, batches))
    with bar("features", total, "images") as progress, torch.inference_mode():
        loader = iterate(load(images, wanted, workers, device))
        for rows, rendered in zip(batches, loader, strict=True):
            seen = {kind: images_of(rendered, kind, device) for kind in kinds.values()}
            raw = summed = extractor(seen)
            finite = torch.isfinite(raw).flatten(1).all(1)
            if not finite.all():
                worst = table["sample_id"].iloc[rows[int(finite.int().argmin())]]
                raise InputError(
                    f"{worst}: its feature isn't finite; these weights are broken. Train the "
                    f"{extractor.info.kind} again, or use other weights"
                )
            if flip:
                summed = raw + extractor({kind: pixels.flip(3) for kind, pixels in seen.items()})
            found = FeatureBatch([*rows], raw.cpu(), nn.functional.normalize(summed, dim=2).cpu())
            for stream, missing in absent.items():
                found.raw[missing[rows], extractor.heads[stream]] = 0
                found.features[missing[rows], extractor.heads[stream]] = 0
            yield found
            progress.advance(len(rows))
