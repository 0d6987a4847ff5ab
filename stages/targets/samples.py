"""The samples of a cache, as a student is trained on them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pandas as pd

from deskpro.cache.errors import CacheError
from deskpro.cache.file_index import FileIndex
from deskpro.cache.reader import MappedReader
from deskpro.cache.schema import Column
from deskpro.cache.store import Group, TargetStore
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import warn
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data.check import CheckedData
from deskpro.stages.data.index import KINDS, class_order, content_hashes
from deskpro.stages.data.unlabelled import UNLABELLED
from deskpro.stages.data.views import View
from deskpro.stages.losses.terms import TERMS
from deskpro.stages.targets.kinds import (
    TARGETS,
    EmbeddingTarget,
    LogitsTarget,
    OfHeads,
    Target,
    all_targets,
    is_imported,
)
from deskpro.stages.targets.provenance import (
    image_differences,
    option_differences,
    training_images,
)

NO_LABEL = -1
"""The label of samples that have none."""


def with_unlabelled(checked: CheckedData) -> pd.DataFrame:
    """The samples of a cache: those that are trained on, then those without labels."""
    parts = [checked.split("train"), checked.split(UNLABELLED)]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def columns(
    train: pd.DataFrame, classes: list[str], views: np.ndarray, files: FileIndex
) -> dict[str, Column]:
    """What is known of each sample before any target is computed."""
    position = {pid: i for i, pid in enumerate(classes)}
    labels = train["pid"].map(position).fillna(NO_LABEL).to_numpy(np.int64)
    fractions = "fractions of the image: " + ", ".join(View._fields)
    columns = {
        "sample_id": Column(
            train["sample_id"].to_numpy(object),
            ("sample",),
            description="path of the body image below its folder",
        ),
        "label": Column(
            labels, ("sample",), description="index into the fingerprint's classes; -1: no label"
        ),
        "views": Column(views, ("sample", "view", "parameter"), description=fractions),
    }
    for kind in KINDS:
        hashes = content_hashes(train[kind].tolist(), files)
        text = f"SHA-256 of the {kind} file"
        columns[f"{kind}_sha256"] = Column(hashes, ("sample", "byte"), description=text)
    return columns


def finished(store: TargetStore, targets: Mapping[str, Target]) -> dict[str, Target]:
    """Those of the targets that a cache holds."""
    return {name: target for name, target in targets.items() if store.sealed(target.group)}


def used_rows(store: TargetStore, *, unlabelled: bool) -> np.ndarray:
    """Which samples are trained on, bool [N]: those with a label, or all of a store that has
    others, too."""
    labelled: np.ndarray = store.column("label") != NO_LABEL
    if unlabelled and labelled.all():
        raise CacheError(
            f"{store.root}: has no images without labels. To add those of data.unlabelled",
            command="teacher-cache --force",
        )
    return labelled | unlabelled


def readers(
    cache: Path, used: Collection[str], there: Mapping[str, Target]
) -> dict[str, MappedReader]:
    """A reader of each target that a cache holds; one that isn't used may be outdated, and is left
    out then. Raises CacheError for one that is used."""
    found = {}
    for name, target in there.items():
        with nullcontext() if name in used else suppress(CacheError):
            found[name] = MappedReader(cache, target.group)
    return found


def warn_of_few_views(used: Mapping[str, MappedReader], count: int) -> None:
    """Say which targets were imported for fewer views than the `count` that a student sees."""
    for name, reader in used.items():
        if reader.schema.views < count:
            warn(
                f"{name}: imported for {reader.schema.views} of {count} views; the others are "
                "trained on the targets of view 0, which are not of what the student sees (deskpro "
                "cache render draws every view)"
            )


def require_targets(
    store: TargetStore, names: Sequence[str], options: Options, feature_dim: int
) -> None:
    """Refuse a cache that lacks targets, or whose embeddings features can't be compared with.

    feature_dim: length of the student's features.
    """
    every = all_targets(options)
    there = finished(store, every)
    if missing := [name for name in names if name not in there]:
        imported = [every[name].teacher for name in missing if is_imported(every[name], options)]
        added = " ".join(f"--add {name}" for name in missing if name in TARGETS)
        what = (
            f"{store.root}: holds {', '.join(there) or 'no finished target'}; the student needs "
            f"{', '.join(missing)}, too. "
        )
        if imported:
            program = "deskpro cache import FILE --teacher"
            raise CacheError(f"{what}Import them ({program} {imported[0]}), or give its weights")
        raise CacheError(f"{what}To add it", command=f"teacher-cache {added}".strip())
    if "embedding" in names:
        length = _shape(store, EmbeddingTarget())[-1]
        if length != feature_dim:
            raise InputError(
                f"embedding.weight: the embeddings of {store.root} have {length} numbers a head, "
                f"student.feature_dim is {feature_dim}: --set student.feature_dim={length}"
            )


def _shape(store: TargetStore, target: OfHeads) -> tuple[int, ...]:
    """Heads, and numbers of each, of a target in a store."""
    return Group.load(store.root / target.group).schema.fields[target.name].shape


def require_match(
    store: TargetStore,
    options: Options,
    weights: Path,
    targets: Collection[Target],
    files: FileIndex,
    deep: bool,
) -> None:
    """Refuse a cache that these options, and the images that are here, would not give.

    Its teacher, HR faces and masks may be gone; what is here is compared. The images that the
    student sees are, too, where the cache was made elsewhere. deep: every file is read.
    """
    unlabelled = bool(options.train_student.unlabelled)
    index = training_images(options, unlabelled=unlabelled)
    found = option_differences(store.root, options, weights, targets)
    used = None if unlabelled else store.column("label") != NO_LABEL
    given = RunFolder(store.root.parent).given()
    seen = ("imgs", "lr_face") if "face" in options.streams else ("imgs",)
    found += image_differences(
        store,
        options,
        index,
        targets,
        files,
        deep=deep,
        used=used,
        exact=seen if given else (),
    )
    if found and given:
        raise CacheError(
            f"{store.root}: unpacked from {given['file']}, which is of another recipe or other "
            f"images: {'; '.join(found)}. Use the recipe and images that it was made from"
        )
    if found:
        raise CacheError(
            f"{store.root}: built from another recipe or images: "
            f"{'; '.join(found)}. Restore them, or rebuild the cache",
            command="teacher-cache --force",
        )


def origin(cache: Path) -> str:
    """Where a cache lies; where it was unpacked, also which it is."""
    given = RunFolder(cache.parent).given()
    return f"{cache}" + (f" (unpacked from {given['file']}, {given['digest']})" if given else "")


def embedding_shapes(
    store: TargetStore, options: Options, names: Sequence[str]
) -> dict[str, tuple[str, tuple[int, int]]]:
    """Name of each other teacher whose embeddings are among the targets → the student's stream that
    learns from it, and heads and length of its embeddings."""
    every, found = all_targets(options), {}
    for name in names:
        target = every[name]
        teacher = options.teachers.get(target.teacher)
        if teacher is not None and isinstance(target, EmbeddingTarget):
            heads, length = _shape(store, target)
            found[target.teacher] = teacher.learner, (heads, length)
    return found


def require_heads(store: TargetStore, names: Sequence[str], options: Options, heads: int) -> None:
    """Refuse targets of a teacher's heads that a student's can't learn from.

    heads: number of heads of a stream of the student. Each may learn from the logits of the one
    head of a teacher; otherwise the heads are the same. Embeddings of other teachers are projected.
    """
    off = {t.target: f"{t.enabled}=false" if t.enabled else f"{t.weight}=0" for t in TERMS.values()}
    every = all_targets(options)
    for name in names:
        target = every[name]
        other = target.teacher in options.teachers
        projected = other and isinstance(target, EmbeddingTarget)
        if projected or not isinstance(target, OfHeads) or not target.parts:
            continue
        found = _shape(store, target)[0]
        if found != heads and not (found == 1 and isinstance(target, LogitsTarget)):
            stream = options.teachers[target.teacher].learner if other else "face"
            instead = f"teachers.{target.teacher}.kd=0" if other else off[name]
            alike = "" if other else "Set teacher.heads and student.heads alike, or "
            raise InputError(
                f"{store.root}: its target {name} has {found} head{'s' * (found > 1)}, the "
                f"student's {stream} stream {heads}. {alike}--set {instead}"
            )


def classes_and_labels(
    store: TargetStore, table: pd.DataFrame, readers: Mapping[str, MappedReader], dataset: str
) -> tuple[list[str], np.ndarray]:
    """Identities in class order, which is that of the teacher's logits, and labels, int64 [N].

    table: the samples in the order of the store; of those without a label any may be missing.
    """
    known = [r.fingerprint["classes"] for r in readers.values() if "classes" in r.fingerprint]
    classes = known[0] if known else class_order(table["pid"].dropna())
    labels = store.column("label")
    named = labels != NO_LABEL
    if [classes[label] for label in labels[named]] != table["pid"][named].tolist():
        raise CacheError(
            f"{store.root}: its labels differ from the identities that {dataset} reads in the "
            "names of its samples. Set the data_train, or data.name, that the cache was made with"
        )
    return classes, labels


def in_order(
    table: pd.DataFrame, store: TargetStore, needed: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """The samples of a store, in its order; needed: kind of image → who must have it, bool [N]."""
    sample_ids = store.column("sample_id").tolist()
    found = table.set_index("sample_id", drop=False).reindex(sample_ids)
    missing = [
        f"{kind}/{sample_ids[row]}"
        for kind, rows in needed.items()
        for row in (rows & found[kind].isna().to_numpy()).nonzero()[0]
    ]
    if missing:
        raise InputError(
            f"{store.root}: {len(missing)} images of its {len(sample_ids)} samples are missing:\n  "
            + "\n  ".join(missing[:40])
            + "\nPut them back, or rebuild the cache",
            command="teacher-cache --force",
        )
    return found.where(found.notna(), None).reset_index(drop=True)
