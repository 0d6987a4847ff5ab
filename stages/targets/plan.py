"""How large a target cache will be, before any of it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from deskpro.cache.schema import PLAIN_GROUP, Column, Field, Schema
from deskpro.cache.size import Size, group_size, root_size
from deskpro.stages.base.options import Options
from deskpro.stages.data.index import KINDS
from deskpro.stages.data.views import View
from deskpro.stages.models.lmbn import head_names
from deskpro.stages.models.weights import ModelInfo
from deskpro.stages.targets import provenance
from deskpro.stages.targets.kinds import (
    OfHeads,
    Settings,
    Target,
    stored_fields,
    stored_targets,
)

_RECORD = 900
"""Bytes of a chunk's record in memory, as measured."""
_HASH = "0" * 64


class StorePlan(NamedTuple):
    """Bytes; `targets`: by name."""

    targets: Mapping[str, Size]
    each: Mapping[str, int]
    """Of a sample and view, by target: with the hash of its pixels, without checksums."""
    root: Size
    """Of columns and metadata beside the groups."""
    item: int
    """Of a block's targets, which the writer has in memory: one written, one computed."""
    columns: int
    """Of the columns in memory, as the reader has them."""
    records: int
    """Of the records of chunks in memory."""

    @property
    def bytes(self) -> int:
        """Of the whole store."""
        return sum(size.chunks + size.rest for size in (*self.targets.values(), self.root))

    @property
    def files(self) -> int:
        """Of the whole store."""
        return sum(size.files for size in (*self.targets.values(), self.root))


def plan(
    options: Options,
    samples: int,
    classes: list[str],
    characters: float,
    teacher: ModelInfo | None = None,
) -> StorePlan:
    """The store that teacher-cache would make of so many samples, all of which have every target.

    classes: names of the identities, which the provenance holds. characters: the mean length of a
    sample's path. teacher: what is known of it; its network is that of the options otherwise.
    """
    views, block = options.cache.views, options.cache.block
    network = teacher.network if teacher else options.teacher.arguments
    made_by = {"weights": _HASH, "network": network}
    own = {"teacher": made_by, "heads": [*_heads(options, teacher)], "classes": classes}
    others = provenance.TeacherFiles(options, Path())
    targets, each, folders = {}, {}, set[Path]()
    for name, target in stored_targets(options).items():
        settings, facts = settings_for(options, len(classes), teacher), own
        if target.teacher in options.teachers:
            settings, facts = others.settings(target.teacher), others.facts(target.teacher)
        fields = stored_fields(target, settings)
        targets[name] = group_size(
            Schema(samples, views, block, fields),
            provenance.fingerprint(target, options, facts if target.teacher else {}),
            provenance.columns(target),
            _facts(target, settings),
        )
        each[name] = sum(map(field_bytes, fields.values()))
        folders |= {*Path(target.group).parents[:-1]}
    root = root_size(_columns(views), samples, characters)
    plain = len(folders) * len(PLAIN_GROUP)
    keys = -(-samples // block) * views
    return StorePlan(
        targets=targets,
        each=each,
        root=root._replace(rest=root.rest + plain, files=root.files + len(folders)),
        item=block * views * sum(each.values()),
        columns=root.chunks,
        records=keys * len(targets) * _RECORD,
    )


def settings_for(options: Options, classes: int, teacher: ModelInfo | None = None) -> Settings:
    """What targets depend on, of a teacher of so many identities."""
    known = teacher.network["feature_dim"] if teacher else options.teacher.feature_dim
    return provenance.settings_of(options, classes, known, _heads(options, teacher))


def _heads(options: Options, teacher: ModelInfo | None) -> tuple[str, ...]:
    known = (teacher.heads or {}).get("face") if teacher else None
    return tuple(known or head_names(options.teacher.heads))


def field_bytes(field: Field) -> int:
    """The bytes of one sample and view in an array."""
    return math.prod(field.shape) * np.dtype(field.dtype).itemsize


def _columns(views: int) -> dict[str, Column]:
    """The columns of a store without samples."""
    hashes = [f"{kind}_sha256" for kind in KINDS]
    shape = (0, views, len(View._fields))
    return {
        "sample_id": Column(np.zeros(0, object), ("sample",)),
        "label": Column(np.zeros(0, np.int64), ("sample",)),
        "views": Column(np.zeros(shape, np.float32), ("sample", "view", "parameter")),
        **{name: Column(np.zeros((0, 32), np.uint8), ("sample", "byte")) for name in hashes},
    }


def _facts(target: Target, settings: Settings) -> dict[str, Any]:
    """Facts of a chunk's record as long as those of real targets."""
    if not isinstance(target, OfHeads):
        return {}
    value = torch.zeros(1, len(settings.heads), getattr(settings, target.length))
    lost = target.lost(value, target.encode(value, settings), settings)
    return {fact: [0.000123456] * len(numbers) for fact, numbers in lost.items()}
