"""What a cache was made from, and whether that is what is here now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deskpro.cache.files import sha256
from deskpro.cache.fingerprint import differences, sample_differences
from deskpro.cache.reader import TargetReader
from deskpro.stages.base.options import Options
from deskpro.stages.data import views as view_module
from deskpro.stages.data.file_index import FileIndex, content_hashes
from deskpro.stages.data.index import KINDS
from deskpro.stages.models.weights import read_metadata

HASHED = {"hr_face_sha256": "hr_face", "mask_sha256": "mask"}
"""Column of the cache → the kind of image whose content it holds."""


def recipe_fingerprint(options: Options) -> dict[str, Any]:
    """What the options say that targets depend on."""
    return {
        "views": options.views.model_dump(mode="json")
        | {"version": view_module.VERSION, "plain_view": options.cache.plain_view},
        "face_size": list(options.data.face_size),
        "body_size": list(options.data.body_size),
        "precision": options.cache.precision,
        "logits_dtype": options.cache.logits_dtype,
    }


def teacher_fingerprint(weights: Path) -> dict[str, Any]:
    """What tells a teacher from another: its weights' SHA-256, its network's options, its class
    order if its file says one."""
    info = read_metadata(weights, "teacher")
    class_order = {} if info.classes is None else {"classes": info.classes}
    return {"teacher": {"weights": sha256(weights), "network": info.network}} | class_order


def hash_columns(table: pd.DataFrame, file_index: Path) -> dict[str, np.ndarray]:
    """The content of every HR face and mask: by column uint8 [N, 32], zeros for an absent file.

    Files whose size and time of change the file index knows aren't read again.
    """
    remembered = FileIndex(file_index)
    columns = {
        column: content_hashes(table[kind].tolist(), remembered) for column, kind in HASHED.items()
    }
    remembered.save()
    return columns


def option_differences(
    reader: TargetReader, options: Options, teacher: Path, *, may_grow: bool = False
) -> list[str]:
    """How the options, and the teacher if it is here, differ from those of the cache.

    may_grow: more views than it has are no difference, as they would be added.
    """
    wanted: Mapping[str, Any] = recipe_fingerprint(options)
    if teacher.is_file():
        wanted = {**teacher_fingerprint(teacher), **wanted}
    lines = differences(reader.fingerprint, wanted)
    before, now = reader.schema.views, options.cache.views
    if now < before or (now > before and not may_grow):
        lines.append(f"cache.views was {before}, is {now}")
    return lines


def image_differences(reader: TargetReader, index: pd.DataFrame, file_index: Path) -> list[str]:
    """How the training images differ from those of the cache, by sample.

    index: every training image that is here (`read_index`). HR faces and masks that aren't here
    can't be compared and don't count. A sample is new where all its images are here and its
    identity has another.
    """
    sample_ids = reader.column("sample_id").tolist()
    here = index[index["sample_id"].isin(sample_ids)].reset_index(drop=True)
    row_of = {sample_id: row for row, sample_id in enumerate(sample_ids)}
    rows = [row_of[sample_id] for sample_id in here["sample_id"]]
    found = hash_columns(here, file_index)
    for column, kind in HASHED.items():
        absent = here[kind].isna().to_numpy()
        found[column][absent] = reader.column(column)[rows][absent]

    complete = index.dropna(subset=list(KINDS))
    complete = complete[complete.groupby("pid")["pid"].transform("size") > 1]
    new = complete.loc[~complete["sample_id"].isin(sample_ids), "sample_id"].tolist()
    names = [*here["sample_id"], *new]
    blank = np.zeros((len(new), 32), np.uint8)
    wanted = {"sample_id": np.asarray(names, object)} | {
        column: np.concatenate([values, blank]) for column, values in found.items()
    }
    sealed = {name: reader.column(name) for name in wanted}
    return sample_differences(sealed, wanted)
