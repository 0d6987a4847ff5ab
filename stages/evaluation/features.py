"""Features: what a network makes of every image of a split."""

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
from deskpro.stages.data.loader import ImageDataset, batched, images_of, iterate, load
from deskpro.stages.models.student import Student
from deskpro.stages.models.teacher import Teacher
from deskpro.stages.models.weights import ModelInfo, load_student, load_teacher, read_metadata


@dataclass(frozen=True)
class FeatureExtractor:
    """A network with what it needs to look at images.

    heads: stream → its slice of the heads; kinds: stream → the kind of image it sees.
    """

    network: Teacher | Student
    info: ModelInfo
    heads: dict[str, slice]
    kinds: dict[str, str]
    sizes: dict[str, tuple[int, int]]

    @property
    def needs(self) -> tuple[str, ...]:
        """The kinds of images of a test sample that must be readable, body images first."""
        return ("imgs", *(kind for kind in self.kinds.values() if kind != "imgs"))


@dataclass(frozen=True)
class Features:
    """What a network makes of a split's images, in the order of `table`.

    raw: float32 [N, H, D], inference features of the images as they are. features: float32
    [N, H, D], summed over image and mirror image where asked, each of length 1. Where a stream's
    image is absent both are 0: what isn't seen has no say, and nothing is NaN.
    """

    table: pd.DataFrame
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

    Where `kind` is None it is whichever the file holds, the student rather than the teacher.

    The sizes are used where the file doesn't say on which its network was trained.
    """
    info = read_metadata(path, kind)
    faces = info.face_size or face_size
    sizes = {"lr_face": faces, "hr_face": faces, "imgs": info.body_size or body_size}
    if info.kind == "teacher":
        teacher, info = load_teacher(path)
        streams, kinds = {"face": slice(None)}, {"face": "hr_face"}
        return FeatureExtractor(teacher.to(device), info, streams, kinds, sizes)
    student, info = load_student(path)
    seen = {"face": "lr_face", "body": "imgs"}
    kinds = {stream: seen[stream] for stream in student.heads}
    return FeatureExtractor(student.to(device), info, student.heads, kinds, sizes)


class FeatureBatch(NamedTuple):
    """Some images' features: their rows; raw and features, float32 [n, H, D]."""

    rows: list[int]
    raw: torch.Tensor
    features: torch.Tensor


def extract_batches(
    extractor: FeatureExtractor,
    table: pd.DataFrame,
    batches: Sequence[Sequence[int]],
    *,
    flip: bool,
    workers: int,
    device: torch.device,
) -> Iterator[FeatureBatch]:
    """The features of batches of a table's rows, in evaluation mode and without gradient."""
    kinds = extractor.kinds
    images = ImageDataset(table, {kind: extractor.sizes[kind] for kind in kinds.values()})
    wanted = [[(row, 0) for row in batch] for batch in batches]
    absent = {
        stream: torch.from_numpy(table[kind].isna().to_numpy(copy=True))
        for stream, kind in kinds.items()
    }
    total = sum(map(len, batches))
    with bar("describe", total, "images") as progress, torch.inference_mode():
        loader = iterate(load(images, wanted, workers, device))
        for rows, rendered in zip(batches, loader, strict=True):
            seen = {kind: images_of(rendered, kind, device) for kind in kinds.values()}
            raw = _features(extractor.network, seen)
            if not torch.isfinite(raw).all():
                worst = rows[int((~torch.isfinite(raw)).flatten(1).any(1).nonzero()[0])]
                raise InputError(
                    f"{table['sample_id'].iloc[worst]}: its feature isn't finite: these weights "
                    "are broken. Train them anew, or give others"
                )
            summed = raw
            if flip:
                mirrored = {kind: pixels.flip(3) for kind, pixels in seen.items()}
                summed = raw + _features(extractor.network, mirrored)
            found = FeatureBatch([*rows], raw.cpu(), nn.functional.normalize(summed, dim=2).cpu())
            for stream, missing in absent.items():
                found.raw[missing[rows], extractor.heads[stream]] = 0
                found.features[missing[rows], extractor.heads[stream]] = 0
            yield found
            progress.advance(len(rows))


def extract_features(
    extractor: FeatureExtractor,
    table: pd.DataFrame,
    *,
    flip: bool,
    batch: int,
    workers: int,
    device: torch.device,
) -> Features:
    """The features of every row of a table."""
    parts = [
        *extract_batches(
            extractor,
            table,
            batched(range(len(table)), batch),
            flip=flip,
            workers=workers,
            device=device,
        )
    ]
    return Features(
        table, torch.cat([part.raw for part in parts]), torch.cat([p.features for p in parts])
    )


def _features(network: Teacher | Student, seen: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """float32 [B, H, D], before normalisation."""
    if isinstance(network, Teacher):
        return network(seen["hr_face"]).features.float()
    return network(seen.get("lr_face"), seen.get("imgs")).features.float()
