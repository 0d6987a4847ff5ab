"""Say how large a target cache will be, and how long it will take, before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.run_folder import RunFolder, read_manifest

if TYPE_CHECKING:
    from deskpro.stages.models.weights import ModelInfo

_CHARACTERS = 24
"""Of a sample's path, where there is neither cache nor data."""


class _Known(NamedTuple):
    """What a recipe's data, teacher and cache tell: classes is empty, rate None where nothing does.

    characters: mean length of a sample's path. rate: (sample, view) a second.
    """

    classes: list[str]
    characters: float = _CHARACTERS
    teacher: ModelInfo | None = None
    rate: float | None = None


def run(
    options: Options, folder: RunFolder | None, samples: int, identities: int | None
) -> tuple[dict[str, object], list[tuple[str, ...]]]:
    """Facts of the cache of so many samples, and a row for each of its targets.

    folder: a run whose teacher and cache tell more. identities: those of the teacher, else of the
    training set, if None. Raises InputError where these can't be found.
    """
    from deskpro.stages.targets.plan import plan

    for name, teacher in options.teachers.items():
        if teacher.weights is not None and not teacher.weights.is_file():
            raise InputError(
                f"teachers.{name}.weights {teacher.weights}: no such file; it tells the length of "
                f"its embeddings. Allowed is a weights file"
            )
    known = _known(options, folder)
    classes = known.classes if identities is None else [str(i) for i in range(identities)]
    if not classes:
        raise InputError(
            f"{options.data.root}: no training images here, and no teacher's weights: the number "
            "of identities, which logits have, is not known. Give it: --identities 1000"
        )
    found = plan(options, samples, classes, known.characters, known.teacher)
    views, rows = options.cache.views, list[tuple[str, ...]]()
    for name, size in found.targets.items():
        whole = _bytes(size.chunks + size.rest)
        rows.append((name, f"{found.each[name]:,}", f"{size.files:,}", whole))
    root = _bytes(found.root.chunks + found.root.rest)
    rows.append(("columns", "", f"{found.root.files:,}", root))
    held = sum(found.each.values()) * samples * views
    fits = held <= options.cache.memory * 1e9
    hours = known.rate and samples * views / known.rate / 3600
    facts: dict[str, object] = {
        "samples": f"{samples:,} of {len(classes):,} identities, {views:,} views of each",
        "blocks": f"{-(-samples // options.cache.block):,} of {options.cache.block} samples",
        "files": f"{found.files:,}",
        "size": f"{_bytes(found.bytes)} on disk, {found.bytes:,} bytes",
        "writer": f"{_bytes(2 * found.item)} of memory for two blocks, one computed and one "
        f"written; {_bytes((1 + len(found.targets)) * found.columns)} for columns, "
        f"{_bytes(found.records)} for records of chunks",
        "reader": f"{_bytes(found.columns)} of memory for columns, {_bytes(found.records)} for "
        f"records of chunks; targets, at most {_bytes(held)}, are "
        + ("in memory, too" if fits else "read from their files")
        + f" (cache.memory {options.cache.memory:g} GB)",
        "time": "not known: no finished cache of this run tells a rate"
        if hours is None
        else f"{hours:.3g} hours at {known.rate:.3g} views a second, as measured by this run",
    }
    return facts, rows


def _known(options: Options, folder: RunFolder | None) -> _Known:
    from deskpro.stages.models.weights import read_metadata

    weights = options.pre_train or (None if folder is None else folder.teacher)
    teacher = read_metadata(weights, "teacher") if weights and weights.is_file() else None
    paths, classes = _training_set(options)
    if teacher is not None:
        classes = teacher.classes or [str(i) for i in range(teacher.num_classes)]
    characters = sum(map(len, paths)) / len(paths) if paths else _CHARACTERS
    if folder is None:
        return _Known(classes, characters, teacher)
    record = read_manifest(RunFolder(folder.upstream).manifest("teacher-cache"))
    return _Known(classes, characters, teacher, None if record is None else rate(record))


def _training_set(options: Options) -> tuple[list[str], list[str]]:
    """Paths and identities of the training samples; none where the data isn't here."""
    from deskpro.stages.data.identities import Identities, training_index
    from deskpro.stages.data.index import class_order

    if not Path(options.data.root).is_dir():
        return [], []
    try:
        index = training_index(
            options.data.root, options.train_set, Identities(*options.data.chosen)
        )
    except InputError:
        return [], []
    return index["sample_id"].tolist(), class_order(index["pid"])


def rate(record: Mapping[str, Any]) -> float | None:
    """The (sample, view) a second of a teacher-cache by its manifest; None where none was computed.

    Chunks that were there already are left out: of the target that had fewest.
    """
    result = record["result"]
    try:
        computed = 1 - min(result["kept"].values()) / result["chunks"]
        data = result["data"]
        pairs = (data["samples"] + data.get("unlabelled", 0)) * result["views"] * computed
        return pairs / record["seconds"] if pairs > 0 and record["seconds"] > 0 else None
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError):
        return None  # of an earlier version


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
