"""Which raw pictures there are, and where each goes in the prepared set."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from stages.data.index import SPLITS, Problem, read_index
from stages.data.layouts import LAYOUTS, PICTURES, PREPARED, Layout
from stages.errors import InputError
from stages.options import Own


@dataclass(frozen=True)
class Sample:
    """A body picture to prepare."""

    id: str
    """Its path below imgs/ in the prepared set; that of its other files, but for the extension."""
    source: Path
    split: str
    pid: str
    camid: int
    clothes: str | None = None


@dataclass(frozen=True)
class Places:
    """Where the prepared set in `root` keeps what belongs to a picture."""

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


def find_samples(root: Path, dataset: str, own: Own) -> tuple[list[Sample], list[Problem]]:
    """The pictures of a raw dataset, or of a folder of one's own where `dataset` is "own".

    Sorted by split and path. Raises InputError where `root` is no folder or holds no pictures.
    """
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder. Set prepare.root to the raw dataset, laid out as {dataset} is"
        )
    layout = LAYOUTS[dataset]
    if dataset == "own" and not layout.bodies(root).is_dir():
        samples, problems = _own_folder(root, own, layout)
    else:
        samples, problems = _published(root, layout)
    if not samples and not problems:
        raise InputError(
            f"{root}: no pictures here ({layout.example}). Set prepare.root, data_train"
        )
    files = Counter(str(Path(sample.id).with_suffix("")) for sample in samples)
    for sample in samples:
        if files[str(Path(sample.id).with_suffix(""))] > 1:
            what = "another picture has the same name but for its extension; rename one"
            problems.append(Problem(sample.source, what))
    return samples, problems


def _published(root: Path, layout: Layout) -> tuple[list[Sample], list[Problem]]:
    splits = [split for split in SPLITS if any(layout.pictures(root, split))]
    table, problems = read_index(root, layout, splits)
    samples = [
        Sample(row["sample_id"], Path(row["imgs"]), row["split"], row["pid"], row["camid"])
        for row in table.to_dict("records")
    ]
    return samples, problems


def _own_folder(root: Path, own: Own, layout: Layout) -> tuple[list[Sample], list[Problem]]:
    rule = re.compile(own.name)
    problems: list[Problem] = []
    found: list[tuple[Sample, str | None]] = []
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in PICTURES or path.name.startswith(".") or not path.is_file():
            continue
        below = path.relative_to(root).as_posix()
        match = rule.fullmatch(below)
        said = match.groupdict() if match else {}
        if match is None:
            problems.append(Problem(path, f"{below} doesn't match prepare.own.name {own.name!r}"))
        elif said.get("split") not in (None, *SPLITS):
            what = f"split {said['split']!r} must be one of {', '.join(SPLITS)}"
            problems.append(Problem(path, what))
        else:
            sample = Sample(
                below, path, said.get("split") or "", said["pid"], 0, said.get("clothes")
            )
            found.append((sample, said.get("camid")))
    samples = _with_cameras(found)
    cameras = any(camera is not None for _, camera in found)
    named = []
    taken: set[str] = set()
    for sample in _with_splits(samples, own, cameras):
        id_ = _name(sample, taken)
        name = layout.parse(id_)
        if name is None or name.pid != sample.pid:
            what = (
                f"identity {sample.pid!r} can't stand at the head of a file name before _c<camid>_"
            )
            problems.append(Problem(sample.source, what))
            continue
        taken.add(str(Path(id_).with_suffix("")))
        named.append(replace(sample, id=id_))
    return sorted(named, key=lambda sample: (SPLITS.index(sample.split), sample.id)), problems


def _with_cameras(found: list[tuple[Sample, str | None]]) -> list[Sample]:
    """Cameras as numbers: their own, else by the order of their names, else one a picture."""
    names = {camera for _, camera in found if camera is not None}
    if all(name.isdecimal() for name in names):
        numbers = {name: int(name) for name in names}
    else:
        numbers = {name: i for i, name in enumerate(sorted(names), 1)}
    seen: Counter[str] = Counter()
    samples = []
    for sample, camera in found:
        seen[sample.pid] += 1
        camid = seen[sample.pid] if camera is None else numbers[camera]
        samples.append(replace(sample, camid=camid))
    return samples


def _with_splits(samples: list[Sample], own: Own, cameras: bool) -> Iterator[Sample]:
    """A split for those whose name doesn't say it.

    A share of the identities is held out; of these, some pictures of each camera are queries, but
    never all of an identity. Somebody with a single picture can be neither trained on nor found:
    that picture is in the gallery.
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


def companions(root: Path, dataset: str) -> Iterable[Path]:
    """Files beside the raw pictures that say more of them: clothes, scenes."""
    layout = LAYOUTS[dataset]
    for name in ("clothes.csv", *layout.scenes.values()):
        if (root / name).is_file():
            yield root / name
