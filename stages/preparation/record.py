"""Records of what each step has written, image by image, so that preparation resumes."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deskpro.cache.file_index import FileIndex
from deskpro.cache.journal import Journal
from deskpro.stages.data.layouts import IMAGE_SUFFIXES
from deskpro.stages.preparation.samples import KINDS, Sample
from deskpro.stages.preparation.step import Outcome, Step


@dataclass(frozen=True)
class Record:
    """What a step made of an image, or was about to write.

    key: digest of everything that the files depend on. files: SHA-256 by path below the prepared
    set.
    """

    id: str
    key: str
    files: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @classmethod
    def of(cls, id_: str, key: str, name: str, outcome: Outcome) -> Record:
        content = outcome.content
        files = {} if content is None else {name: hashlib.sha256(content).hexdigest()}
        return cls(id_, key, files, dict(outcome.facts), outcome.problem)


@dataclass
class Prepared:
    """The state of an image: keys by step, facts of all steps, why it cannot be used.

    foreign: whether that is a file that prepare did not write.
    """

    sample: Sample
    keys: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    foreign: bool = False


class Records:
    """The records of one step, in a journal in the folder .prepare of the prepared set.

    A record is on disk before its files are written, and each of these is complete or absent. So a
    file that no record names is foreign, and never replaced.
    """

    def __init__(self, root: Path, step: str) -> None:
        self.root = root
        self._journal = Journal(root / ".prepare" / f"{step}.jsonl")
        self._records: dict[str, list[Record]] = defaultdict(list)
        for line in self._journal.read():
            record = Record(**line)
            self._records[record.id].append(record)

    def ids(self) -> set[str]:
        """Every image that has a record."""
        return {*self._records}

    def find(self, id_: str, key: str) -> Record | None:
        """The record of an image with this key."""
        return next((r for r in reversed(self._records.get(id_, [])) if r.key == key), None)

    def facts(self, id_: str) -> Mapping[str, Any]:
        """Those of the last record of an image; none without one."""
        return self._records[id_][-1].facts if id_ in self._records else {}

    def owns(self, id_: str, path: Path, digest: str) -> bool:
        """Whether a file with this SHA-256 is one that the step wrote for an image."""
        name = self.name(path)
        return any(r.files.get(name) == digest for r in self._records.get(id_, []))

    def name(self, path: Path) -> str:
        """The path of a file below the prepared set."""
        return str(path.relative_to(self.root))

    def add(self, records: Collection[Record]) -> None:
        """Keep records of files that are about to be written."""
        self._journal.append(map(asdict, records))
        for record in records:
            self._records[record.id].append(record)

    def withdraw(self, id_: str, file_index: FileIndex) -> None:
        """Delete the files that the step wrote for an image."""
        paths = {self.root / name for record in self._records[id_] for name in record.files}
        for path, digest in digests(paths, file_index).items():
            if self.owns(id_, path, digest):
                path.unlink()

    def compact(self, keys: Mapping[str, str]) -> None:
        """Keep one record of each image, that of its key."""
        kept = [self.find(id_, keys[id_]) for id_ in sorted(keys)]
        self._journal.rewrite(asdict(record) for record in kept if record is not None)


def digests(paths: Iterable[Path], index: FileIndex, *, deep: bool = False) -> dict[Path, str]:
    """The SHA-256 of each file; "" for one that is absent or cannot be read."""
    unique = list(dict.fromkeys(paths))
    facts = index.probe(unique, deep=deep)
    return {path: facts[str(path)].sha256 for path in unique}


def images_by_stem(root: Path) -> dict[Path, list[Path]]:
    """The images in a prepared set by path without extension.

    Masks and faces are found by their stem: a .png there would be mistaken for the .jpg that a step
    writes.
    """
    found: dict[Path, list[Path]] = defaultdict(list)
    for kind in KINDS:
        for path in sorted((root / kind).rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                found[path.with_suffix("")].append(path)
    return found


def unfinished(
    step: Step,
    images: Sequence[Prepared],
    records: Records,
    resident: Mapping[Path, Sequence[Path]],
    file_index: FileIndex,
) -> set[str]:
    """The ids of images that a step must run on; the others get recorded facts, or a problem.

    resident: see `images_by_stem`.
    """
    inputs, present = {}, {}
    for image in images:
        id_, path = image.sample.id, step.path(step.writes, image.sample)
        inputs[id_] = step.inputs(image.sample)
        present[id_] = [p for p in {path, *resident.get(path.with_suffix(""), ())} if p.exists()]
    groups = [*inputs.values(), *present.values()]
    known = digests((path for group in groups for path in group), file_index)
    fixed = json.dumps(step.provenance(), sort_keys=True, default=str)
    todo = set()
    for image in images:
        id_ = image.sample.id
        parts = [step.name, id_, fixed, *(known[path] for path in inputs[id_])]
        key = image.keys[step.name] = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        foreign = [p for p in present[id_] if not records.owns(id_, p, known[p])]
        record = records.find(id_, key)
        if foreign:
            image.foreign = True
            image.problem = (
                f"{min(foreign)}: was not written by prepare. Move or delete it, or leave the step "
                f"{step.name} out of prepare.steps"
            )
        elif (
            record is not None
            and record.problem is None
            and record.files == {records.name(path): known[path] for path in present[id_]}
        ):
            image.facts |= record.facts
        else:
            todo.add(id_)
    return todo
