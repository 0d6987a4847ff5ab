"""The gallery as the teacher sees it, for queries as its student sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from deskpro.cache.file_index import FileIndex
from deskpro.stages.base.distributed import pick_device
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import warn
from deskpro.stages.evaluation.asymmetric import (
    OPTION,
    STUDENT_ALONE,
    require_face_stream,
    require_teacher,
)
from deskpro.stages.evaluation.feature_store import FeatureStore, Stored, store_features
from deskpro.stages.evaluation.image_digests import contents_digest
from deskpro.stages.models.extractor import FeatureExtractor, open_extractor


class TeacherGallery(NamedTuple):
    """The teacher's features of the gallery's HR faces."""

    table: pd.DataFrame
    """The gallery with `hr_row`, the place of each image in the store; images without an HR face
    have one place together, whose features are 0."""
    stored: FeatureStore
    made: Stored
    path: Path

    @classmethod
    def of(
        cls,
        path: Path,
        teacher: FeatureExtractor,
        weights: Path,
        gallery: pd.DataFrame,
        options: Options,
        index: FileIndex,
        budget: float,
    ) -> TeacherGallery:
        """Bring the store at `path` to the features of the gallery; see `store_features`.

        weights: of the teacher; budget: bytes in which features may be kept on the device.
        """
        made = store_features(path, teacher, weights, gallery, options, index)
        stored = FeatureStore(path, pick_device(options.device), budget)
        return cls(gallery.assign(hr_row=made.rows), stored, made, path)

    def facts(self) -> dict[str, Any]:
        """What was done for them."""
        return {
            "kept": self.made.kept,
            "blocks": self.made.blocks,
            "features": self.path,
            "without_face": self.without_face,
        }

    @property
    def without_face(self) -> int:
        """Images without an HR face."""
        return int(self.table["hr_face"].isna().sum())

    def digests(self) -> dict[str, str]:
        """SHA-256 of the contents of the HR faces, in the order of the images' names."""
        rows = self.table.sort_values("sample_id")["hr_row"].to_numpy()
        return {"hr_face of gallery": contents_digest(self.stored.contents()["hr_face"][rows])}


def open_gallery_teacher(
    weights: Path | None, student: FeatureExtractor, options: Options, device: torch.device
) -> FeatureExtractor | None:
    """The teacher of a weights file, whose features a student's face stream can meet; None where
    there is no file.

    Warns where the student hasn't learned its features.

    Raises:
        InputError: the file is missing or has no teacher, the student has no face stream, or
            their features differ in heads or length.
    """
    if weights is None:
        return None
    require_face_stream(student.heads)
    require_teacher(weights, options)
    sizes = options.data.face_size, options.data.body_size
    teacher = open_extractor(weights, "teacher", *sizes, device)
    theirs, own = _heads(teacher), _heads(student)
    if theirs != own:
        raise InputError(
            f"{OPTION} needs equal heads and feature lengths: {weights} has {len(theirs[0])} heads "
            f"of length {theirs[1]}, the student's face stream {len(own[0])} of length {own[1]}. "
            f"Train a student with --set student.feature_dim={theirs[1]}, or do without the "
            "teacher",
            command=STUDENT_ALONE,
        )
    more = len(options.cache.checkpoints)
    if not options.embedding.weight:
        warn(
            f"{OPTION}, but embedding.weight is 0: the student has not learned the teacher's "
            "embeddings, so that face_hr says little. To learn them: --set embedding.weight=1"
        )
    elif more:
        warn(
            f"{OPTION}: the student learned the mean of {1 + more} networks (cache.checkpoints), "
            f"face_hr has the features of {weights} alone"
        )
    return teacher


def _heads(network: FeatureExtractor) -> tuple[list[str], int]:
    """Names of the face stream's heads, and the length of their features."""
    return (network.info.heads or {})["face"], network.shape[1]
