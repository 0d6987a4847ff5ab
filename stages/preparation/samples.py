"""The raw images, and their files in the prepared set."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.prepare_options import Own
from deskpro.stages.data.index import (
    SPLITS,
    Problem,
    duplicate_ids,
    is_text,
    read_clothes,
    read_index,
)
from deskpro.stages.data.layouts import IMAGE_SUFFIXES, LAYOUTS, PREPARED, Layout

_LONGEST = 200
"""Bytes of a file's name: file systems allow 255, and a file written aside has a longer name."""


KINDS = {"imgs": "", "labels": ".png", "mask": ".png", "lr_face": ".png", "hr_face": ".jpg"}
"""The folders of a prepared set, and the extension of the files there; "" is that of the id."""


def prepared_path(root: Path, kind: str, id_: str) -> Path:
    """The file of an image in the folder `kind` of the prepared set `root`."""
    path = root / kind / id_
    return path.with_suffix(KINDS[kind]) if KINDS[kind] else path


@dataclass(frozen=True)
class Sample:
    """A body image to prepare.

    id: its path below imgs/ in the prepared set; its other files differ in the extension. facts:
    what earlier steps found, see `Outcome.facts`.
    """

    id: str
    source: Path
    split: str
    pid: str
    camid: int
    clothes: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Found:
    """What a raw folder has; skipped: files that are not images, by extension."""

    samples: list[Sample]
    problems: list[Problem]
    skipped: Counter[str] = field(default_factory=Counter)


def find_samples(root: Path, dataset: str, own: Own) -> Found:
    """The images of a raw dataset, or of a folder of your own images if `dataset` is "own".

    Sorted by split and path. Raises InputError where `root` is no folder or has no images.
    """
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder. Set prepare.root to the raw dataset, in the layout of "
            f"{dataset}"
        )
    layout = LAYOUTS[dataset]
    if is_own_folder(root, dataset):
        found = _own_folder(root, own, layout)
    else:
        found = _published(root, layout)
    if not found.samples and not found.problems:
        raise InputError(f"{root}: no images ({layout.example}). Set prepare.root, data_train")
    # Faces, masks and label maps are found by the name without its extension.
    stems = Counter(sample.source.with_suffix("") for sample in found.samples)
    for sample in found.samples:
        if stems[sample.source.with_suffix("")] > 1:
            what = "another image has the same name with another extension; rename one"
            found.problems.append(Problem(sample.source, what))
        if len(Path(sample.id).name.encode(errors="replace")) > _LONGEST:
            what = f"its name would be {Path(sample.id).name!r}: longer than {_LONGEST} bytes"
            found.problems.append(Problem(sample.source, f"{what}; shorten it"))
    return found


def is_own_folder(root: Path, dataset: str) -> bool:
    """Whether the names below `root` follow prepare.own, not a dataset's layout."""
    return dataset == "own" and not (root / "imgs").is_dir()


def companions(root: Path, dataset: str) -> Iterator[Path]:
    """The lists beside a published dataset's images: clothes, scenes."""
    for name in ("clothes.csv", *LAYOUTS[dataset].scenes.values()):
        if (root / name).is_file() and not is_own_folder(root, dataset):
            yield root / name


def _published(root: Path, layout: Layout) -> Found:
    splits = [split for split in SPLITS if any(layout.images(root, split))]
    table, problems = read_index(root, layout, splits)
    samples = [
        Sample(row["sample_id"], Path(row["imgs"]), row["split"], row["pid"], row["camid"])
        for row in table.to_dict("records")
    ]
    return Found(samples, problems)


def _own_folder(root: Path, own: Own, layout: Layout) -> Found:
    clothes, problems = read_clothes(root / "clothes.csv")
    found = Found([], problems)
    cameras: dict[str, str | None] = {}
    for path in _files(root):
        below = path.relative_to(root).as_posix()
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            if path.name != "clothes.csv":
                kind = path.suffix or path.name
                found.skipped[kind if is_text(kind) else "a name that isn't UTF-8"] += 1
            continue
        groups = _groups(path, below, own.name)
        if isinstance(groups, Problem):
            problems.append(groups)
            continue
        worn = groups.get("clothes") or clothes.get(below)
        split, pid = groups.get("split") or "", str(groups["pid"])
        found.samples.append(Sample(below, path, split, pid, 0, worn))
        cameras[below] = groups.get("camid")
    problems += duplicate_ids({sample.pid for sample in found.samples}, root)
    problems += _contradictions(found.samples, cameras)
    if not problems:
        known = any(camera is not None for camera in cameras.values())
        samples = _with_splits(_with_cameras(found.samples, cameras), own, known)
        found.samples = _named(samples, layout, problems)
    return found


def _groups(path: Path, below: str, rule: str) -> dict[str, str | None] | Problem:
    """What the name of an image contains, by group of `prepare.own.name`."""
    if not is_text(below):
        return Problem(path, f"its name isn't UTF-8 ({below!r}); rename it")
    if not path.is_file():
        return Problem(path, "broken link; remove it")
    match = re.fullmatch(rule, below)
    if match is None:
        return Problem(path, f"{below} doesn't match prepare.own.name {rule!r}")
    groups = match.groupdict()
    if groups.get("split") not in (None, *SPLITS):
        return Problem(path, f"split {groups['split']!r} must be one of {', '.join(SPLITS)}")
    return groups


def _named(samples: Iterable[Sample], layout: Layout, problems: list[Problem]) -> list[Sample]:
    """The images with their ids in the prepared set, sorted by split and id."""
    named: list[Sample] = []
    used: set[str] = set()
    for sample in samples:
        id_ = _name(sample, used)
        name = layout.parse(id_)
        if name is None or name.pid != sample.pid:
            what = f"identity {sample.pid!r} cannot be an ID: {Path(id_).name!r} reads differently"
            problems.append(Problem(sample.source, f"{what} ({layout.example})"))
            continue
        used.add(str(Path(id_).with_suffix("")))
        named.append(replace(sample, id=id_))
    return sorted(named, key=lambda sample: (SPLITS.index(sample.split), sample.id))


def _name(sample: Sample, used: set[str]) -> str:
    """<split folder>/<pid>_c<camid>_<path>.<ext>, the path without the identity's folder."""
    path = Path(sample.id)
    parts = [*path.parent.parts, path.stem]
    frame = "-".join(parts[1:] if len(parts) > 1 and parts[0] == sample.pid else parts)
    folder = PREPARED[sample.split].split("/")[0]
    first = stem = f"{folder}/{sample.pid}_c{sample.camid}_{frame}"
    number = 2
    while stem in used:
        stem = f"{first}-{number}"
        number += 1
    return stem + path.suffix


def _files(root: Path) -> Iterator[Path]:
    """Every file that isn't hidden, sorted; links to folders are followed, each folder once."""
    seen: set[Path] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        here = Path(folder)
        if here.resolve() in seen:
            folders.clear()
            continue
        seen.add(here.resolve())
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (here / name for name in sorted(files) if not name.startswith("."))


def _contradictions(samples: list[Sample], cameras: Mapping[str, str | None]) -> Iterator[Problem]:
    """Names that lack a camera or split that others have; identities in training and in test."""
    some_camera = any(camera is not None for camera in cameras.values())
    splits: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        splits[sample.pid].add(sample.split)
    for sample in samples:
        others = splits[sample.pid] - {sample.split}
        if some_camera and cameras[sample.id] is None:
            yield Problem(sample.source, "its name has no camera (camid), other names have one")
        if not sample.split and others:
            what = f"its name has no split, others of identity {sample.pid} have one"
            yield Problem(sample.source, what)
        if sample.split == "train" and others & {"query", "gallery"}:
            what = f"identity {sample.pid} is in training and in {'/'.join(sorted(others - {''}))}"
            yield Problem(sample.source, what)


def _with_cameras(samples: list[Sample], cameras: Mapping[str, str | None]) -> list[Sample]:
    """Cameras as numbers: those in the names, else by the order of their names, else by image."""
    names = {camera for camera in cameras.values() if camera is not None}
    if all(name.isdecimal() and len(name) <= 9 for name in names):
        numbers = {name: int(name) for name in names}
    else:
        numbers = {name: i for i, name in enumerate(sorted(names), 1)}
    seen: Counter[str] = Counter()
    numbered = []
    for sample in samples:
        camera = cameras[sample.id]
        seen[sample.pid] += 1
        camid = seen[sample.pid] if camera is None else numbers[camera]
        numbered.append(replace(sample, camid=camid))
    return numbered


def _with_splits(samples: list[Sample], own: Own, cameras: bool) -> Iterator[Sample]:
    """A split for the images whose name has none.

    A share of the identities is held out; of these, some images of each camera are queries, but
    never all of an identity. An identity with a single image can be neither trained on nor found:
    that image is in the gallery.
    """
    yield from (sample for sample in samples if sample.split)
    images: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if not sample.split:
            images[sample.pid].append(sample)
    alone = {pid for pid, own_images in images.items() if len(own_images) == 1}
    drawn = sorted(images.keys() - alone, key=lambda pid: _draw(own.seed, pid))
    held_out = {*drawn[: round(own.test * len(drawn))]}
    for pid, own_images in images.items():
        queries = _queries(own_images, own, cameras) if pid in held_out else set()
        rest = "gallery" if pid in alone or pid in held_out else "train"
        for sample in own_images:
            yield replace(sample, split="query" if sample.id in queries else rest)


def _queries(images: list[Sample], own: Own, cameras: bool) -> set[str]:
    drawn = sorted(images, key=lambda sample: _draw(own.seed, sample.id))
    groups: dict[int, list[str]] = defaultdict(list)
    for sample in drawn:
        groups[sample.camid if cameras else 0].append(sample.id)
    queries = {id_ for ids in groups.values() for id_ in ids[: min(own.query, len(ids) - 1)]}
    return queries or {drawn[0].id}


def _draw(seed: int, name: str) -> bytes:
    """A hash that orders names at random, each independent of the other names."""
    return hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogateescape")).digest()
