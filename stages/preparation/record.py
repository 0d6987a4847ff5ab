"""Records of what each step has written, image by image, so that preparation resumes."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import below
from deskpro.cache.journal import Journal
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.files import list_images
from deskpro.stages.data.index import Problem, refuse
from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.step import Outcome, Step

FOREIGN = "was not written by prepare. Move or delete it"


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


class Records:
    """The records of one step, in a journal in the folder .prepare of the prepared set.

    A record is on disk before its files are written, and each of these is complete or absent. So a
    file that no record names is foreign, and never replaced.
    """

    def __init__(self, root: Path, step: str, index: FileIndex) -> None:
        self.root, self.index = root, index
        self.keys: dict[str, str] = defaultdict(str)
        """Id → the key that a record must have now; "" where nothing else counts."""
        self._journal = Journal(root / ".prepare" / f"{step}.jsonl")
        self._records: dict[str, list[Record]] = defaultdict(list)
        self._written: set[tuple[str, str]] = set()
        """Path and SHA-256 of every file that a record names."""
        for line in self._journal.read():
            try:
                record = Record(**line)
                for name in record.files:
                    below(root, name)
            except (AttributeError, TypeError, ValueError) as error:
                raise InputError(
                    f"{self._journal.path}: not a journal of prepare ({error}). Move {root} away "
                    "and prepare it again"
                ) from None
            self._remember(record)

    def _remember(self, record: Record) -> None:
        self._records[record.id].append(record)
        self._written.update(record.files.items())

    def ids(self) -> set[str]:
        """Every image that has a record."""
        return {*self._records}

    def current(self, id_: str) -> Record | None:
        """The last record of an image that has its key."""
        found = reversed(self._records.get(id_, []))
        return next((record for record in found if record.key == self.keys[id_]), None)

    def facts(self, id_: str) -> Mapping[str, Any]:
        """Those of the last record of an image; none without one."""
        return self._records[id_][-1].facts if id_ in self._records else {}

    def owns(self, name: str, digest: str) -> bool:
        """Whether the step wrote a file with this path and SHA-256, for whichever image."""
        return (name, digest) in self._written

    def name(self, path: Path) -> str:
        """The path of a file below the prepared set."""
        return str(path.relative_to(self.root))

    def digests(self, paths: Iterable[Path]) -> dict[Path, str]:
        """The SHA-256 of each file; "" for one that is absent or cannot be read."""
        unique = list(dict.fromkeys(paths))
        facts = self.index.probe(unique)
        return {path: facts[str(path)].sha256 for path in unique}

    def add(self, ids: Iterable[str], paths: Iterable[Path], outcomes: Iterable[Outcome]) -> None:
        """Keep records of files that are about to be written, by image."""
        new = [
            Record(id_, self.keys[id_], made.files(self.name(path)), made.facts, made.problem)
            for id_, path, made in zip(ids, paths, outcomes, strict=True)
        ]
        self._journal.append(map(asdict, new))
        for record in new:
            self._remember(record)

    def keep(self, ids: Collection[str]) -> None:
        """Delete what the step wrote for other images alone; keep the current records of these."""
        kept = [record for id_ in sorted(ids) if (record := self.current(id_)) is not None]
        needed = {name for record in kept for name in record.files}
        for id_ in self.ids() - {*ids}:
            names = {name for record in self._records[id_] for name in record.files} - needed
            for path, digest in self.digests(self.root / name for name in names).items():
                if self.owns(self.name(path), digest):
                    path.unlink()
        self._journal.rewrite(map(asdict, kept))


def images_below(folder: Path) -> list[Path]:
    """The images in a folder of the prepared set, sorted; hidden ones are passed over."""
    return [folder / name for name in list_images(folder, "**/*")]


def outdated(step: Step, samples: Sequence[Sample], records: Records) -> set[str]:
    """The ids of images that a step must run on; the others get their recorded facts.

    Raises InputError for files in the way that prepare did not write. One with another extension
    is in the way too: masks and faces are found by their stem.
    """
    there: dict[Path, list[Path]] = defaultdict(list)
    for path in images_below(records.root / step.writes):
        there[path.with_suffix("")].append(path)
    inputs, present = dict[str, list[Path]](), dict[str, set[Path]]()
    for sample in samples:
        path = step.path(step.writes, sample)
        inputs[sample.id] = step.inputs(sample)
        present[sample.id] = {p for p in (path, *there[path.with_suffix("")]) if p.exists()}
    known = records.digests(chain(*inputs.values(), *present.values()))
    fixed = json.dumps(step.provenance(), sort_keys=True, default=str)
    todo, foreign = set(), list[Path]()
    for sample in samples:
        id_ = sample.id
        parts = [step.name, id_, fixed, *(known[path] for path in inputs[id_])]
        records.keys[id_] = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        files = {records.name(path): known[path] for path in present[id_]}
        foreign += [p for p in present[id_] if not records.owns(records.name(p), known[p])]
        record = records.current(id_)
        if record is not None and record.problem is None and record.files == files:
            sample.facts |= record.facts
        else:
            todo.add(id_)
    what = FOREIGN
    if {step.name} < {*step.settings.steps}:  # one must be left
        what += f", or leave the step {step.name} out of prepare.steps"
    refuse([Problem(path, what) for path in sorted(foreign)], "can't be prepared")
    return todo
