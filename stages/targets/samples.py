"""The samples of a cache, as a student is trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from deskpro.cache.errors import CacheError
from deskpro.cache.reader import MappedReader
from deskpro.cache.store import TargetStore
from deskpro.stages.base.errors import InputError
from deskpro.stages.data.index import class_order
from deskpro.stages.targets.kinds import TARGETS


def finished(store: TargetStore) -> list[str]:
    """The targets that a cache holds."""
    return [name for name, target in TARGETS.items() if store.sealed(target.group)]


def require_targets(store: TargetStore, names: Sequence[str], feature_dim: int) -> None:
    """Refuse a cache that lacks targets, or whose embeddings features can't be compared with.

    feature_dim: length of the student's features.
    """
    there = finished(store)
    if lacking := [name for name in names if name not in there]:
        raise CacheError(
            f"{store.root}: holds {', '.join(there) or 'no finished target'}; the student needs "
            f"{', '.join(lacking)}, too. To add it",
            command="teacher-cache " + " ".join(f"--add {name}" for name in lacking),
        )
    if "embedding" in names:
        fields = MappedReader(store.root, TARGETS["embedding"].group).schema.fields
        length = fields["embedding"].shape[-1]
        if length != feature_dim:
            raise InputError(
                f"embedding.weight: the embeddings of {store.root} have {length} numbers a head, "
                f"student.feature_dim is {feature_dim}: --set student.feature_dim={length}"
            )


def classes_and_labels(
    store: TargetStore, table: pd.DataFrame, readers: Mapping[str, MappedReader], dataset: str
) -> tuple[list[str], np.ndarray]:
    """Identities in class order, which is that of the teacher's logits, and labels, int64 [N].

    table: the samples in the order of the store.
    """
    known = [r.fingerprint["classes"] for r in readers.values() if "classes" in r.fingerprint]
    classes = known[0] if known else class_order(table["pid"])
    labels = store.column("label")
    if [classes[label] for label in labels] != table["pid"].tolist():
        raise CacheError(
            f"{store.root}: its labels differ from the identities that data_train={dataset} reads "
            "in the names of its samples. Set the data_train that the cache was made with"
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
