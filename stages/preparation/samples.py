"""The raw images, and their files in the prepared set."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.files import IMAGE_SUFFIXES, walk
from deskpro.stages.base.prepare_options import Own
from deskpro.stages.data.index import (
    Problem,
    duplicate_ids,
    is_text,
    read_clothes,
    read_index,
    warn_of,
)
from deskpro.stages.data.layouts import PREPARED, SPLITS, Layout, dataset_name, layout_of
from deskpro.stages.data.unused import NOT_USED, find_unused, is_file, rows_without_image

_LONGEST = 200
"""Bytes of a file's name: file systems allow 255, and a file written aside has a longer name."""


EXTENSIONS = {"imgs": "", "labels": ".png", "mask": ".png", "lr_face": ".png", "hr_face": ".jpg"}
"""The folders of a prepared set, and the extension of the files there; "" is that of the id."""


def prepared_path(root: Path, kind: str, id_: str) -> Path:
    """The file of an image in the folder `kind` of the prepared set `root`."""
    path = root / kind / id_
    return path.with_suffix(EXTENSIONS[kind]) if EXTENSIONS[kind] else path


@dataclass
class Sample:
    """A body image to prepare, and what is known of it so far.

    id: its path below imgs/ in the prepared set; its other files differ in the extension. facts:
    what the steps found, see `Outcome.facts`. problem: why it cannot be used.
    """

    id: str
    source: Path
    split: str
    pid: str
    camid: int
    clothes: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


_FIELDS = ["id", "source", "split", "pid", "camid", "clothes"]


@dataclass
class RawFolder:
    """What a raw folder has; skipped: files that are not images, by extension."""

    samples: list[Sample]
    problems: list[Problem]
    skipped: Counter[str] = field(default_factory=Counter)


def find_samples(root: Path, dataset: str, own: Own) -> RawFolder:
    """The images of a raw dataset, or of a folder of your own images if `dataset` is "own".

    Sorted by split and path. Raises InputError where `root` is no folder or has no images.
    """
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder. Set prepare.root to the raw dataset, in the layout of "
            f"{dataset}"
        )
    layout = layout_of(root, dataset)
    if is_own_folder(root, dataset):
        found = _own_folder(root, own, layout)
    else:
        found = _published(root, layout)
    if not found.samples and not found.problems:
        raise InputError(f"{root}: no images ({layout.example}). Set prepare.root, data_train")
    # Faces, masks and label maps are found by the name without its extension.
    stems = Counter(sample.source.with_suffix("") for sample in found.samples)
    for sample in found.samples:
        name = Path(sample.id).name
        if stems[sample.source.with_suffix("")] > 1:
            what = "another image has the same name with another extension; rename one"
            found.problems.append(Problem(sample.source, what))
        if len(name.encode(errors="replace")) > _LONGEST:
            what = f"its name would be {name!r}: longer than {_LONGEST} bytes; shorten it"
            found.problems.append(Problem(sample.source, what))
    return found


def is_own_folder(root: Path, dataset: str) -> bool:
    """Whether the names below `root` follow prepare.own, not a dataset's layout."""
    return dataset_name(root, dataset) == "own" and not (root / "imgs").is_dir()


def _published(root: Path, layout: Layout) -> RawFolder:
    splits = [split for split in SPLITS if any(layout.images(root, split))]
    table, problems = read_index(root, layout, splits)
    unused, unmatched = find_unused(root, layout, splits)
    warn_of(unused, NOT_USED)
    problems += unmatched
    samples = [
        Sample(row["sample_id"], Path(row["imgs"]), row["split"], row["pid"], row["camid"])
        for row in table.to_dict("records")
    ]
    return RawFolder(samples, problems)


def _own_folder(root: Path, own: Own, layout: Layout) -> RawFolder:
    clothes, problems = read_clothes(root / "clothes.csv")
    rows, skipped = list[dict[str, Any]](), Counter[str]()
    for path in walk(root):
        below, kind = path.relative_to(root).as_posix(), path.suffix or path.name
        if path.suffix.lower() in IMAGE_SUFFIXES:
            try:
                groups = _parse(path, below, own.name)
            except ValueError as error:
                problems.append(Problem(path, str(error)))
            else:
                worn = groups.get("clothes") or clothes.get(below)
                rows.append({"id": below, "source": path, **groups, "clothes": worn})
        elif path.name != "clothes.csv":
            skipped[kind if is_text(kind) else "a name that isn't UTF-8"] += 1
    listed, images = root / "clothes.csv", {row["id"] for row in rows}
    unused, unmatched = rows_without_image(listed, clothes, images, lambda id_: is_file(root, id_))
    warn_of(unused, NOT_USED)
    problems += unmatched
    table = pd.DataFrame(rows, columns=_FIELDS, dtype=object)
    table["split"] = table["split"].fillna("")
    problems += duplicate_ids({*table["pid"]}, root)
    problems += _contradictions(table)
    if problems:
        return RawFolder([], problems, skipped)
    _set_cameras_and_splits(table, own)
    samples = [Sample(*row) for row in table.itertuples(index=False)]
    problems += _set_ids(samples, layout)
    samples.sort(key=lambda sample: (SPLITS.index(sample.split), sample.id))
    return RawFolder(samples, problems, skipped)


def _parse(path: Path, below: str, rule: str) -> dict[str, str | None]:
    """What the name of an image contains, by group of `prepare.own.name`.

    Raises ValueError where the image cannot be used.
    """
    if not is_text(below):
        raise ValueError(f"its name isn't UTF-8 ({below!r}); rename it")
    if not path.is_file():
        raise ValueError("broken link; remove it")
    match = re.fullmatch(rule, below)
    if match is None:
        raise ValueError(f"{below} doesn't match prepare.own.name {rule!r}")
    split = match.groupdict().get("split")
    if split not in (None, *SPLITS):
        raise ValueError(f"split {split!r} must be one of {', '.join(SPLITS)}")
    return match.groupdict()


def _contradictions(table: pd.DataFrame) -> list[Problem]:
    """Names that lack a camera or split that others have; identities in training and in test."""
    people, no_camera, split = table["pid"], table["camid"].isna(), table["split"]
    known, tested = people[split != ""], people[split.isin(["query", "gallery"])]
    wrong = {
        "its name has no camera (camid), other names have one": no_camera & (not no_camera.all()),
        "its name has no split, others of identity {} have one": (split == "") & people.isin(known),
        "identity {} is in training and in query or gallery": (split == "train")
        & people.isin(tested),
    }
    return [
        Problem(row["source"], what.format(row["pid"]))
        for what, rows in wrong.items()
        for row in table[rows].to_dict("records")
    ]


def _set_cameras_and_splits(table: pd.DataFrame, own: Own) -> None:
    """Cameras as numbers; a split for the images whose name has none.

    Names of cameras that aren't numbers are numbered in their order. Without cameras each image of
    an identity counts as one. A share of the identities is held out; of these, some images of each
    camera are queries, but never all of an identity. An identity with a single image can be neither
    trained on nor found: that image is in the gallery.
    """
    names = sorted({*table["camid"].dropna()})
    decimal = all(name.isdecimal() and len(name) <= 9 for name in names)
    numbers = {name: int(name) if decimal else i for i, name in enumerate(names, 1)}
    table["camid"] = [numbers.get(camera, 0) for camera in table["camid"]]
    free = table[table["split"] == ""]
    alone = ~free["pid"].duplicated(keep=False)
    several = sorted({*free["pid"][~alone]}, key=lambda pid: _draw(own.seed, pid))
    held_out = free["pid"].isin(several[: round(own.test * len(several))])
    table.loc[free.index, "split"] = (alone | held_out).map({True: "gallery", False: "train"})
    hashes = free["id"][held_out].map(lambda name: _draw(own.seed, name))
    drawn = free.loc[hashes.sort_values().index]
    seen = drawn.groupby(["pid", "camid"])["id"]
    queries = drawn[seen.cumcount() < np.minimum(own.query, seen.transform("size") - 1)]
    first = drawn[~drawn["pid"].isin(queries["pid"])].drop_duplicates("pid")
    table.loc[[*queries.index, *first.index], "split"] = "query"
    if not names:
        table["camid"] = table.groupby("pid").cumcount() + 1


def _draw(seed: int, name: str) -> bytes:
    """A hash that orders names at random, each independent of the other names."""
    return hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogateescape")).digest()


def _set_ids(samples: Sequence[Sample], layout: Layout) -> Iterator[Problem]:
    """<split folder>/<pid>_c<camid>_<path>.<ext>, the path without the identity's folder."""
    used: set[str] = set()
    for sample in samples:
        path = Path(sample.id)
        parts = [*path.parent.parts, path.stem]
        frame = "-".join(parts[1:] if len(parts) > 1 and parts[0] == sample.pid else parts)
        folder = PREPARED[sample.split].split("/")[0]
        first = f"{folder}/{sample.pid}_c{sample.camid}_{frame}"
        names = chain([first], (f"{first}-{number}" for number in count(2)))
        stem = next(name for name in names if name not in used)
        used.add(stem)
        sample.id = stem + path.suffix
        name = layout.parse(sample.id)
        if name is None or name.pid != sample.pid:
            what = f"identity {sample.pid!r} cannot be an ID: {Path(sample.id).name!r} reads"
            yield Problem(sample.source, f"{what} differently ({layout.example})")
