"""What was prepared already, picture by picture, so that a step goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stages.data.memo import Memo
from stages.files import sha256, write_aside
from stages.preparation.samples import Sample
from stages.preparation.step import Outcome, Step


@dataclass(frozen=True)
class Entry:
    """What a step once made of a picture."""

    id: str
    key: str
    """Digest of everything that it was made from."""
    files: dict[str, str]
    """SHA-256 by path below the prepared set."""
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


class Ledger:
    """The entries of one step, in lines of JSON: those of each process under way, then one file.

    A picture's files are written first, complete or not at all, then its entry; before both, the
    line that they are about to be. A file that no entry or such line speaks of is somebody else's.
    """

    def __init__(self, root: Path, step: str, rank: int = 0) -> None:
        """root: the prepared set; its folder .prepare holds the ledger."""
        self.root, self.step = root, step
        self.folder = root / ".prepare"
        self._own = self.folder / f"{step}.{rank}.part.jsonl"
        self._entries: dict[str, list[Entry]] = defaultdict(list)
        self._begun: set[str] = set()
        for path in (self._sealed, *self._parts()):
            self._read(path)

    @property
    def _sealed(self) -> Path:
        return self.folder / f"{self.step}.jsonl"

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.step}.*.part.jsonl"))

    def _read(self, path: Path) -> None:
        if not path.is_file():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                said = json.loads(line)
            except ValueError:  # the line that a kill cut short
                continue
            if "begun" in said:
                self._begun |= set(said["begun"])
            else:
                self._entries[said["id"]].append(Entry(**said))
                self._begun.discard(said["id"])

    def entry(self, id_: str, key: str) -> Entry | None:
        """The entry of a picture that was made from the same."""
        return next((e for e in reversed(self._entries[id_]) if e.key == key), None)

    def latest(self, id_: str) -> Entry | None:
        """The last entry of a picture, whatever it was made from."""
        return self._entries[id_][-1] if self._entries[id_] else None

    def ids(self) -> list[str]:
        """Every picture that there is an entry of."""
        return sorted(id_ for id_, entries in self._entries.items() if entries)

    def intact(self, entry: Entry, memo: Memo) -> bool:
        """Whether the files of an entry are there, as they were written."""
        return all(
            _content(self.root / name, memo) == digest for name, digest in entry.files.items()
        )

    def owns(self, id_: str, path: Path, memo: Memo) -> bool:
        """Whether an existing file is one that this step wrote, or was writing when killed."""
        if id_ in self._begun:
            return True
        name, content = str(path.relative_to(self.root)), _content(path, memo)
        return any(entry.files.get(name) == content for entry in self._entries[id_])

    def written(self, id_: str) -> set[Path]:
        """The files that this step ever wrote of a picture."""
        return {self.root / name for entry in self._entries[id_] for name in entry.files}

    def begin(self, ids: Sequence[str]) -> None:
        """Say that files of these pictures are about to be written."""
        self._begun |= {*ids}
        self._append([{"begun": [*ids]}])

    def add(self, entries: Sequence[Entry]) -> None:
        """Keep what was made."""
        for entry in entries:
            self._entries[entry.id].append(entry)
            self._begun.discard(entry.id)
        self._append([asdict(entry) for entry in entries])

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{json.dumps(line, sort_keys=True)}\n" for line in lines)
        with self._own.open("a", encoding="utf-8") as file:
            # A kill may have cut the last line short: what follows begins a new one.
            file.write("\n" + text)
            file.flush()
            os.fsync(file.fileno())

    def seal(self, keys: Mapping[str, str]) -> None:
        """Keep one entry of each picture, the one of its key, in one file; forget the rest."""
        with write_aside(self._sealed) as aside, aside.open("w", encoding="utf-8") as file:
            for id_ in sorted(keys):
                entry = self.entry(id_, keys[id_])
                if entry is not None:
                    file.write(json.dumps(asdict(entry), sort_keys=True) + "\n")
        for part in self._parts():
            part.unlink()


def perform(
    step: Step,
    samples: Sequence[Sample],
    ledger: Ledger,
    memo: Memo,
) -> list[tuple[str, Outcome]]:
    """Do a step for a batch of pictures, as far as it isn't done: the key and outcome of each.

    The outcomes hold facts and problems, no files: those are written.
    """
    fixed = json.dumps(step.made_from(), sort_keys=True, default=str)
    with ThreadPoolExecutor() as pool:
        keys = list(pool.map(lambda sample: _key(step, sample, fixed, memo), samples))
    done: dict[str, Outcome] = {}
    todo: list[Sample] = []
    for sample, key in zip(samples, keys, strict=True):
        entry = ledger.entry(sample.id, key)
        foreign = [
            path
            for path in step.makes(sample)
            if path.exists() and not ledger.owns(sample.id, path, memo)
        ]
        if foreign:
            done[sample.id] = Outcome(
                problem=f"{foreign[0]}: isn't what prepare wrote. Move or delete it, or leave the "
                f"step {step.name} out of prepare.steps"
            )
        elif entry is not None and entry.problem is None and ledger.intact(entry, memo):
            done[sample.id] = Outcome(facts=entry.facts)
        else:
            todo.append(sample)
    if todo:
        ledger.begin([sample.id for sample in todo])
        made = step(todo)
        by_id = dict(zip((sample.id for sample in samples), keys, strict=True))
        with ThreadPoolExecutor() as pool:
            entries = list(
                pool.map(
                    lambda pair: _write(pair[0], pair[1], by_id[pair[0].id], step, ledger),
                    zip(todo, made, strict=True),
                )
            )
        ledger.add(entries)
        for sample, outcome in zip(todo, made, strict=True):
            done[sample.id] = Outcome(facts=outcome.facts, problem=outcome.problem)
    return [(key, done[sample.id]) for sample, key in zip(samples, keys, strict=True)]


def _write(sample: Sample, outcome: Outcome, key: str, step: Step, ledger: Ledger) -> Entry:
    for path in {*step.makes(sample)} - {*outcome.files}:
        path.unlink(missing_ok=True)
    for path, content in outcome.files.items():
        with write_aside(path) as aside:
            aside.write_bytes(content)
    files = {
        str(path.relative_to(ledger.root)): hashlib.sha256(content).hexdigest()
        for path, content in sorted(outcome.files.items())
    }
    return Entry(sample.id, key, files, dict(outcome.facts), outcome.problem)


def _key(step: Step, sample: Sample, fixed: str, memo: Memo) -> str:
    digest = hashlib.sha256(f"{step.name}\0{sample.id}\0{fixed}".encode(errors="surrogateescape"))
    for path in step.needs(sample):
        digest.update(f"\0{_content(path, memo)}".encode())
    return digest.hexdigest()


def _content(path: Path, memo: Memo) -> str | None:
    try:
        found: str = memo.recall(str(path), "sha256", lambda: sha256(path))
        return found
    except OSError:
        return None
