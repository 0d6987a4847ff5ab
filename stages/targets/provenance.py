"""What each group of targets depends on, and how that differs from what is here now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import sha256
from deskpro.cache.fingerprint import Difference, FieldDifference, differences, sample_differences
from deskpro.cache.reader import MappedReader
from deskpro.cache.store import TargetStore
from deskpro.stages.base.options import Options
from deskpro.stages.data import views as view_module
from deskpro.stages.data.index import KINDS, content_hashes
from deskpro.stages.models.lmbn import LMBN
from deskpro.stages.models.weights import ModelInfo, read_metadata
from deskpro.stages.targets.kinds import TARGETS, Settings


def settings_of(options: Options, teacher: ModelInfo | None = None) -> Settings:
    """What targets depend on, of the options and the teacher."""
    data, cache = options.data, options.cache
    # The student's attention has the size of its trunk's map, whatever the width.
    student = LMBN(1, backbone=options.student.backbone, width=0.25)
    return Settings(
        classes=teacher.num_classes if teacher else 0,
        face_size=data.face_size,
        body_size=data.body_size,
        map_size=student.map_size(data.body_size),
        precision=cache.precision,
        logits_dtype=cache.logits_dtype,
        embedding_dtype=cache.embedding_dtype,
        embedding_dim=teacher.network["feature_dim"] if teacher else 0,
        heads=LMBN.heads,
    )


def teacher_fingerprint(weights: Path) -> dict[str, Any]:
    """What tells one teacher from another: its weights' SHA-256, its network's options, its class
    order if its file has one."""
    info = read_metadata(weights, "teacher")
    class_order = {} if info.classes is None else {"classes": info.classes}
    return {"teacher": {"weights": sha256(weights), "network": info.network}} | class_order


def fingerprint(name: str, options: Options, teacher: Mapping[str, Any]) -> dict[str, Any]:
    """What the values of a target depend on besides its columns, as JSON."""
    target, settings = TARGETS[name], settings_of(options)
    versions = {"version": view_module.VERSION, "plain_view": options.cache.plain_view}
    sizes = {field: getattr(settings, field) for field in target.depends}
    return {
        **(teacher if target.of_teacher else {}),
        "views": options.views.model_dump(mode="json") | versions,
        **{field: [*v] if isinstance(v, tuple) else v for field, v in sizes.items()},
    }


def columns(name: str) -> list[str]:
    """The root columns that a target's chunks depend on."""
    return ["sample_id", "views", *(f"{kind}_sha256" for kind in TARGETS[name].sees)]


def valid(table: pd.DataFrame, name: str) -> np.ndarray:
    """Which samples of a table have the images that a target is computed from, bool [N]."""
    found: np.ndarray = table[list(TARGETS[name].sees)].notna().all(axis=1).to_numpy(copy=True)
    return found


def kinds_seen(names: Iterable[str]) -> tuple[str, ...]:
    """The kinds of images that targets are computed from."""
    return tuple(dict.fromkeys(kind for name in names for kind in TARGETS[name].sees))


def option_differences(
    store: Path, options: Options, weights: Path, names: Iterable[str], *, may_grow: bool = False
) -> list[Difference]:
    """How the options, and the teacher if it is here, differ from those of the stored targets.

    may_grow: more views than are stored, and targets that are not, are no difference.
    """
    teacher = teacher_fingerprint(weights) if weights.is_file() else {}
    found: list[Difference] = []
    for name in names:
        if may_grow and TARGETS[name].group not in TargetStore(store).groups():
            continue
        reader = MappedReader(store, TARGETS[name].group)
        found += differences(reader.fingerprint, fingerprint(name, options, teacher))
        before, now = reader.schema.views, options.cache.views
        if now < before or (now > before and not may_grow):
            found.append(FieldDifference("cache.views", before, now))
    return [each for i, each in enumerate(found) if each not in found[:i]]


def image_differences(
    store: TargetStore,
    index: pd.DataFrame,
    names: Iterable[str],
    files: FileIndex,
    *,
    whole: bool,
    deep: bool = False,
) -> list[Difference]:
    """How the training images differ from those of the stored targets, by sample.

    index: every training image that is here (`read_index`). Images that targets are computed from
    and that aren't here can't be compared and don't count. A sample is new where its images are
    here (all of them, if `whole`) and its identity has another.
    """
    sample_ids = store.column("sample_id").tolist()
    here = index[index["sample_id"].isin(sample_ids)].reset_index(drop=True)
    row_of = {sample_id: row for row, sample_id in enumerate(sample_ids)}
    rows = [row_of[sample_id] for sample_id in here["sample_id"]]
    complete = index.dropna(subset=list(KINDS) if whole else ["imgs"])
    complete = complete[complete.groupby("pid")["pid"].transform("size") > 1]
    new = complete.loc[~complete["sample_id"].isin(sample_ids), "sample_id"].tolist()
    wanted = {"sample_id": np.asarray([*here["sample_id"], *new], object)}
    for kind in kinds_seen(names):
        hashes = content_hashes(here[kind].tolist(), files, deep=deep)
        absent = here[kind].isna().to_numpy()
        hashes[absent] = store.column(f"{kind}_sha256")[rows][absent]
        blank = np.zeros((len(new), 32), np.uint8)
        wanted[f"{kind}_sha256"] = np.concatenate([hashes, blank])
    return [*sample_differences({name: store.column(name) for name in wanted}, wanted)]
