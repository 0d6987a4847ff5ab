"""Which raw images there are, and where each goes in the prepared set."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

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
"""Bytes of a file's name: file systems take 255, and what is written aside has a longer one."""


@dataclass(frozen=True)
class Sample:
    """A body image to prepare."""

    id: str
    """Its path below imgs/ in the prepared set; that of its other files, but for the extension."""
    source: Path
    split: str
    pid: str
    camid: int
    clothes: str | None = None


@dataclass(frozen=True)
class Places:
    """Where the prepared set in `root` keeps what belongs to an image."""

    root: Path

    def body(self, id_: str) -> Path:
        return self.root / "imgs" / id_

    def labels(self, id_: str) -> Path:
        """The label map."""
        return (self.root / "labels" / id_).with_suffix(".png")

    def mask(self, id_: str) -> Path:
        return (self.root / "mask" / id_).with_suffix(".png")

    def lr_face(self, id_: str) -> Path:
        return (self.root / "lr_face" / id_).with_suffix(".png")

    def hr_face(self, id_: str) -> Path:
        return (self.root / "hr_face" / id_).with_suffix(".jpg")


@dataclass
class Found:
    """What a raw folder holds."""

    samples: list[Sample]
    problems: list[Problem]
    passed_over: Counter[str] = field(default_factory=Counter)
    """Files that aren't images, by extension."""


def find_samples(root: Path, dataset: str, own: Own) -> Found:
    """The images of a raw dataset, or of a folder of one's own where `dataset` is "own".

    Sorted by split and path. Raises InputError where `root` is no folder or holds no images.
    """
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder. Set prepare.root to the raw dataset, laid out as {dataset} is"
        )
    layout = LAYOUTS[dataset]
    if is_own_folder(root, dataset):
        found = _own_folder(root, own, layout)
    else:
        found = _published(root, layout)
    if not found.samples and not found.problems:
        raise InputError(f"{root}: no images ({layout.example}). Set prepare.root, data_train")
    # Faces, masks and label maps go by the name without its extension.
    stems = Counter(sample.source.with_suffix("") for sample in found.samples)
    for sample in found.samples:
        if stems[sample.source.with_suffix("")] > 1:
            what = "another image has the same name but for its extension; rename one"
            found.problems.append(Problem(sample.source, what))
        if len(Path(sample.id).name.encode(errors="replace")) > _LONGEST:
            what = f"its name would be {Path(sample.id).name!r}: longer than {_LONGEST} bytes"
            found.problems.append(Problem(sample.source, f"{what}; shorten it"))
    return found


def is_own_folder(root: Path, dataset: str) -> bool:
    """Whether the names below `root` follow prepare.own, not a dataset's layout."""
    return dataset == "own" and not (root / "imgs").is_dir()


def _published(root: Path, layout: Layout) -> Found:
    splits = [split for split in SPLITS if any(layout.images(root, split))]
    table, problems = read_index(root, layout, splits)
    samples = [
        Sample(row["sample_id"], Path(row["imgs"]), row["split"], row["pid"], row["camid"])
        for row in table.to_dict("records")
    ]
    return Found(samples, problems)


def _own_folder(root: Path, own: Own, layout: Layout) -> Found:
    rule = re.compile(own.name)
    clothes, problems = read_clothes(root / "clothes.csv")
    found = Found([], problems)
    cameras: dict[str, str | None] = {}
    for path in _files(root):
        below = path.relative_to(root).as_posix()
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            if path.name != "clothes.csv":
                kind = path.suffix or path.name
                found.passed_over[kind if is_text(kind) else "a name that isn't UTF-8"] += 1
            continue
        match = rule.fullmatch(below)
        said = match.groupdict() if match else {}
        what = ""
        if not is_text(below):
            what = f"its name isn't UTF-8 ({below!r}); rename it"
        elif not path.is_file():
            what = "a link to nothing; remove it"
        elif match is None:
            what = f"{below} doesn't match prepare.own.name {own.name!r}"
        elif said.get("split") not in (None, *SPLITS):
            what = f"split {said['split']!r} must be one of {', '.join(SPLITS)}"
        if what:
            problems.append(Problem(path, what))
            continue
        worn = said.get("clothes") or clothes.get(below)
        found.samples.append(Sample(below, path, said.get("split") or "", said["pid"], 0, worn))
        cameras[below] = said.get("camid")
    problems += duplicate_ids({sample.pid for sample in found.samples}, root)
    problems += _contradictions(found.samples, cameras)
    if problems:
        return found
    samples = _with_splits(
        _with_cameras(found.samples, cameras), own, any(c is not None for c in cameras.values())
    )
    found.samples = []
    taken: set[str] = set()
    for sample in samples:
        id_ = _name(sample, taken)
        name = layout.parse(id_)
        if name is None or name.pid != sample.pid:
            what = f"identity {sample.pid!r} can't stand at the head of a name before _c<camid>_"
            problems.append(Problem(sample.source, what))
            continue
        taken.add(str(Path(id_).with_suffix("")))
        found.samples.append(replace(sample, id=id_))
    found.samples.sort(key=lambda sample: (SPLITS.index(sample.split), sample.id))
    return found


def _files(root: Path) -> Iterator[Path]:
    """Every file that isn't hidden, sorted; linked folders are followed, each folder once."""
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
    """Names that say a camera or split where others don't, and people in training and in test."""
    some_camera = any(camera is not None for camera in cameras.values())
    splits: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        splits[sample.pid].add(sample.split)
    for sample in samples:
        theirs = splits[sample.pid]
        if some_camera and cameras[sample.id] is None:
            yield Problem(sample.source, "its name says no camera (camid), others' do")
        if "" in theirs and len(theirs) > 1 and not sample.split:
            what = f"its name says no split, others of identity {sample.pid} do"
            yield Problem(sample.source, what)
        if "train" in theirs and theirs & {"query", "gallery"} and sample.split == "train":
            what = f"identity {sample.pid} is in training and in {'/'.join(sorted(theirs))}"
            yield Problem(sample.source, what.replace("/train", ""))


def _with_cameras(samples: list[Sample], cameras: Mapping[str, str | None]) -> list[Sample]:
    """Cameras as numbers: their own, else by the order of their names, else one an image."""
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
    """A split for those whose name doesn't say it.

    A share of the identities is held out; of these, some images of each camera are queries, but
    never all of an identity. Somebody with a single image can be neither trained on nor found:
    that image is in the gallery.
    """
    yield from (sample for sample in samples if sample.split)
    people: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if not sample.split:
            people[sample.pid].append(sample)
    alone = {pid for pid, theirs in people.items() if len(theirs) == 1}
    drawn = sorted(people.keys() - alone, key=lambda pid: _draw(own.seed, pid))
    held_out = {*drawn[: round(own.test * len(drawn))]}
    for pid, theirs in people.items():
        if pid in alone:
            yield replace(theirs[0], split="gallery")
        elif pid not in held_out:
            yield from (replace(sample, split="train") for sample in theirs)
        else:
            queries = _queries(theirs, own, cameras)
            for sample in theirs:
                yield replace(sample, split="query" if sample.id in queries else "gallery")


def _queries(theirs: list[Sample], own: Own, cameras: bool) -> set[str]:
    drawn = sorted(theirs, key=lambda sample: _draw(own.seed, sample.id))
    groups: dict[int, list[str]] = defaultdict(list)
    for sample in drawn:
        groups[sample.camid if cameras else 0].append(sample.id)
    queries = {id_ for ids in groups.values() for id_ in ids[: min(own.query, len(ids) - 1)]}
    return queries or {drawn[0].id}


def _draw(seed: int, name: str) -> bytes:
    """A number for a name that has nothing to do with other names."""
    return hashlib.sha256(f"{seed}\0{name}".encode(errors="surrogateescape")).digest()


def _name(sample: Sample, taken: set[str]) -> str:
    """<split folder>/<pid>_c<camid>_<path>.<ext>, the path without the identity's folder."""
    path = Path(sample.id)
    parts = [*path.parent.parts, path.stem]
    frame = "-".join(parts[1:] if len(parts) > 1 and parts[0] == sample.pid else parts)
    folder = PREPARED[sample.split].split("/")[0]
    stem = f"{folder}/{sample.pid}_c{sample.camid}_{frame}"
    number = 2
    while stem in taken:
        stem = f"{folder}/{sample.pid}_c{sample.camid}_{frame}-{number}"
        number += 1
    return stem + path.suffix


def companions(root: Path, dataset: str) -> Iterator[Path]:
    """Files beside a published dataset's images that say more of them: clothes, scenes."""
    for name in ("clothes.csv", *LAYOUTS[dataset].scenes.values()):
        if (root / name).is_file() and not is_own_folder(root, dataset):
            yield root / name
