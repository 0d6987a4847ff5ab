"""What was prepared already, image by image, so that a step goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from deskpro.cache.files import sha256, write_aside
from deskpro.stages.data.file_index import FileIndex
from deskpro.stages.data.layouts import IMAGE_SUFFIXES, UNFINISHED
from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.step import Outcome, Step


@dataclass(frozen=True)
class Entry:
    """What a step made of an image, or was about to make."""

    id: str
    key: str
    """Digest of everything that it was made from."""
    files: dict[str, str]
    """SHA-256 by path below the prepared set."""
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


class Ledger:
    """The entries of one step, in lines of JSON: those of each process under way, then one file.

    An entry is written before its files are, and each of these is complete or absent: a file is
    what some entry says, or it is somebody else's.
    """

    def __init__(self, root: Path, step: str, rank: int = 0) -> None:
        """root: the prepared set; its folder .prepare holds the ledger."""
        self.root, self.step = root, step
        self.folder = root / ".prepare"
        self._own = self.folder / f"{step}.{rank}{UNFINISHED}"
        self._entries: dict[str, list[Entry]] = defaultdict(list)
        for path in (self._sealed, *self._parts()):
            self._read(path)

    @property
    def _sealed(self) -> Path:
        return self.folder / f"{self.step}.jsonl"

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.step}.*{UNFINISHED}"))

    def _read(self, path: Path) -> None:
        if not path.is_file():
            return
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):  # the line that a kill cut short, or no entry at all
                continue
            self._entries[entry.id].append(entry)

    def entry(self, id_: str, key: str) -> Entry | None:
        """The entry of an image that was made from the same."""
        return next((e for e in reversed(self._entries[id_]) if e.key == key), None)

    def latest(self, id_: str) -> Entry | None:
        """The last entry of an image, whatever it was made from."""
        return self._entries[id_][-1] if self._entries[id_] else None

    def ids(self) -> list[str]:
        """Every image that there is an entry of."""
        return sorted(id_ for id_, entries in self._entries.items() if entries)

    def intact(self, entry: Entry, there: Collection[Path], file_index: FileIndex) -> bool:
        """Whether the files of an entry, and no others of `there`, are there as they were made."""
        made = {self.root / name: digest for name, digest in entry.files.items()}
        return {*there} == {*made} and all(
            _content(path, file_index) == made[path] for path in made
        )

    def owns(self, id_: str, path: Path, file_index: FileIndex) -> bool:
        """Whether an existing file is one that this step made."""
        name, content = str(path.relative_to(self.root)), _content(path, file_index)
        return any(entry.files.get(name) == content for entry in self._entries[id_])

    def withdraw(self, id_: str, file_index: FileIndex) -> None:
        """Remove what this step made of an image."""
        for path in {self.root / name for entry in self._entries[id_] for name in entry.files}:
            if path.exists() and self.owns(id_, path, file_index):
                path.unlink()

    def add(self, entries: Sequence[Entry]) -> None:
        """Say what is about to be written."""
        for entry in entries:
            self._entries[entry.id].append(entry)
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{json.dumps(asdict(entry))}\n" for entry in entries)
        with self._own.open("a", encoding="utf-8") as file:
            # A kill may have cut the last line short: what follows begins a new one.
            file.write("\n" + text)
            file.flush()
            os.fsync(file.fileno())

    def seal(self, keys: Mapping[str, str]) -> None:
        """Keep one entry of each image, the one of its key, in one file; forget the rest."""
        with write_aside(self._sealed) as aside, aside.open("w", encoding="utf-8") as file:
            for id_ in sorted(keys):
                entry = self.entry(id_, keys[id_])
                if entry is not None:
                    file.write(json.dumps(asdict(entry)) + "\n")
        for part in self._parts():
            part.unlink()


class Siblings:
    """The images that lay in the prepared set when work began, by path without extension.

    A face or mask is found by its stem, whatever its extension: one that somebody put there as
    .png would be taken for the .jpg that is made.
    """

    def __init__(self, root: Path) -> None:
        self._found: dict[Path, list[Path]] = defaultdict(list)
        for kind in ("imgs", "labels", "mask", "lr_face", "hr_face"):
            for path in (root / kind).rglob("*"):
                if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                    self._found[path.with_suffix("")].append(path)

    def of(self, paths: Iterable[Path]) -> set[Path]:
        """Those of some paths, and of their siblings, that are there."""
        named = {sibling for path in paths for sibling in self._found[path.with_suffix("")]}
        return {path for path in named | {*paths} if path.exists()}


def perform(
    step: Step, samples: Sequence[Sample], ledger: Ledger, siblings: Siblings, file_index: FileIndex
) -> list[tuple[str, Outcome]]:
    """Do a step for a batch of images, as far as it isn't done: the key and outcome of each.

    The outcomes hold facts and problems, no files: those are written.
    """
    fixed = json.dumps(step.provenance(), sort_keys=True, default=str)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda sample: _key(step, sample, fixed, file_index), samples))
    keys = {sample.id: key for sample, key in zip(samples, found, strict=True)}
    done: dict[str, Outcome] = {}
    todo: list[Sample] = []
    for sample in samples:
        entry = ledger.entry(sample.id, keys[sample.id])
        there = siblings.of(step.makes(sample))
        foreign = sorted(path for path in there if not ledger.owns(sample.id, path, file_index))
        if foreign:
            done[sample.id] = Outcome(
                problem=f"{foreign[0]}: isn't what prepare wrote. Move or delete it, or leave the "
                f"step {step.name} out of prepare.steps",
                foreign=True,
            )
        elif entry and entry.problem is None and ledger.intact(entry, there, file_index):
            done[sample.id] = Outcome(facts=entry.facts)
        else:
            todo.append(sample)
    if todo:
        made = step(todo)
        ledger.add(
            [_entry(s.id, keys[s.id], one, ledger.root) for s, one in zip(todo, made, strict=True)]
        )
        with ThreadPoolExecutor() as pool:
            list(pool.map(partial(_write, step), todo, made))
        for sample, outcome in zip(todo, made, strict=True):
            done[sample.id] = Outcome(facts=outcome.facts, problem=outcome.problem)
    return [(keys[sample.id], done[sample.id]) for sample in samples]


def _entry(id_: str, key: str, outcome: Outcome, root: Path) -> Entry:
    files = {
        str(path.relative_to(root)): hashlib.sha256(content).hexdigest()
        for path, content in sorted(outcome.files.items())
    }
    return Entry(id_, key, files, dict(outcome.facts), outcome.problem)


def _write(step: Step, sample: Sample, outcome: Outcome) -> None:
    for path in {*step.makes(sample)} - {*outcome.files}:
        path.unlink(missing_ok=True)
    for path, content in outcome.files.items():
        with write_aside(path) as aside:
            aside.write_bytes(content)


def _key(step: Step, sample: Sample, fixed: str, file_index: FileIndex) -> str:
    digest = hashlib.sha256(f"{step.name}\0{sample.id}\0{fixed}".encode())
    for path in step.needs(sample):
        digest.update(f"\0{_content(path, file_index)}".encode())
    return digest.hexdigest()


def _content(path: Path, file_index: FileIndex) -> str | None:
    try:
        found: str = file_index.recall(str(path), "sha256", lambda: sha256(path))
        return found
    except OSError:
        return None
