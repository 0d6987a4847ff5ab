"""Descriptors: what a network makes of every picture of a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from stages.data.loader import Pictures, batches_in_order, iterate, load, photographs
from stages.models.student import Student
from stages.models.teacher import Teacher
from stages.models.weights import Description, describe, load_student, load_teacher
from stages.progress import bar


@dataclass(frozen=True)
class Describer:
    """A network with what it needs to look at pictures.

    heads: stream → its slice of the heads; kinds: stream → the kind of picture it sees.
    """

    network: Teacher | Student
    description: Description
    heads: dict[str, slice]
    kinds: dict[str, str]
    sizes: dict[str, tuple[int, int]]

    @property
    def needs(self) -> tuple[str, ...]:
        """The kinds of pictures of a test sample that must be readable, body pictures first."""
        return ("imgs", *(kind for kind in self.kinds.values() if kind != "imgs"))


@dataclass(frozen=True)
class Descriptors:
    """What a network makes of a split's pictures, in the order of `table`.

    raw: float32 [N, H, D], inference features of the pictures as they are. features: float32
    [N, H, D], summed over picture and mirror image where asked, each of length 1. Where a stream's
    picture is absent both are 0: what isn't seen has no say, and nothing is NaN.
    """

    table: pd.DataFrame
    raw: torch.Tensor
    features: torch.Tensor


def open_describer(
    path: Path,
    kind: str | None,
    face_size: tuple[int, int],
    body_size: tuple[int, int],
    device: torch.device,
) -> Describer:
    """The network of a weights file: a student, or a teacher, which sees HR faces.

    Where `kind` is None it is whichever the file holds, the student rather than the teacher.

    The sizes are used where the file doesn't say on which its network was trained.
    """
    description = describe(path, kind)
    faces = description.face_size or face_size
    sizes = {"lr_face": faces, "hr_face": faces, "imgs": description.body_size or body_size}
    if description.kind == "teacher":
        teacher, _ = load_teacher(path)
        streams, kinds = {"face": slice(None)}, {"face": "hr_face"}
        return Describer(teacher.to(device), description, streams, kinds, sizes)
    student, _ = load_student(path)
    seen = {"face": "lr_face", "body": "imgs"}
    kinds = {stream: seen[stream] for stream in student.heads}
    return Describer(student.to(device), description, student.heads, kinds, sizes)


def describe_pictures(
    describer: Describer,
    rows: pd.DataFrame,
    *,
    flip: bool,
    batch: int,
    workers: int,
    device: torch.device,
) -> Descriptors:
    """The descriptors of a split's pictures, in evaluation mode and without gradient."""
    kinds = describer.kinds
    pictures = Pictures(rows, {kind: describer.sizes[kind] for kind in kinds.values()})
    batches = batches_in_order([(row, 0) for row in range(len(rows))], batch)
    raw, summed = [], []
    with bar("describe", len(rows), "pictures") as progress, torch.inference_mode():
        for looks in iterate(load(pictures, batches, workers, device)):
            seen = {kind: photographs(looks, kind, device) for kind in kinds.values()}
            features = _features(describer.network, seen)
            raw.append(features.cpu())
            if flip:
                mirrored = {kind: pixels.flip(3) for kind, pixels in seen.items()}
                features = features + _features(describer.network, mirrored)
            summed.append(nn.functional.normalize(features, dim=2).cpu())
            progress.advance(len(features))
    descriptors = Descriptors(rows, torch.cat(raw), torch.cat(summed))
    for stream, kind in kinds.items():
        absent = torch.from_numpy(rows[kind].isna().to_numpy(copy=True))
        descriptors.raw[absent, describer.heads[stream]] = 0
        descriptors.features[absent, describer.heads[stream]] = 0
    return descriptors


def _features(network: Teacher | Student, seen: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """float32 [B, H, D], before normalisation."""
    if isinstance(network, Teacher):
        return network(seen["hr_face"]).features.float()
    return network(seen.get("lr_face"), seen.get("imgs")).features.float()
