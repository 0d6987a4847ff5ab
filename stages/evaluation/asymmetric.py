"""What asymmetric search needs: a student's queries, the gallery of its teacher. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options

if TYPE_CHECKING:
    import pandas as pd

OPTION = "eval.gallery_network: teacher"
STUDENT_ALONE = "eval --gallery-network student"
"""The command that does without the teacher."""


def refuse_options(options: Options, *, alone: bool) -> None:
    """Raise InputError where options rule out the teacher's gallery.

    alone: a weights file is evaluated, no run's student.
    """
    if alone:
        raise InputError(
            f"{OPTION} ranks for the student of a run, and a network is evaluated alone here. "
            "Leave --checkpoint out, or add --gallery-network student"
        )
    require_face_stream(options.streams)


def require_face_stream(streams: Iterable[str]) -> None:
    """Raise InputError for a student without a face stream."""
    if "face" not in (names := [*streams]):
        raise InputError(
            f"{OPTION} needs a student with a face stream, this one has {', '.join(names)} alone. "
            "Do without the teacher",
            command=STUDENT_ALONE,
        )


def require_teacher(weights: Path, options: Options) -> None:
    """Raise InputError where the teacher's weights are missing."""
    if weights.is_file():
        return
    if options.pre_train is not None:
        raise InputError(
            f"pre_train {weights}: no such file, {OPTION} needs it; allowed is a weights file of a "
            "teacher. Set it with --set pre_train=FILE, or do without the teacher",
            command=STUDENT_ALONE,
        )
    raise InputError(
        f"{weights}: no such file, {OPTION} needs it. Train the teacher, name its weights with "
        "--set pre_train=FILE, or do without: --gallery-network student",
        command="train-teacher",
    )


def require_hr_faces(gallery: pd.DataFrame, root: Path) -> None:
    """Raise InputError for a gallery without any HR face."""
    if gallery["hr_face"].isna().all():
        raise InputError(
            f"{root}: no image of the gallery has an HR face, {OPTION} needs some. Make them "
            "(deskpro prepare), or do without the teacher",
            command=STUDENT_ALONE,
        )
