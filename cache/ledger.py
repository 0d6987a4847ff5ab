"""The ledger of a store in the making: what it lists is there, what it doesn't list never was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deskpro.cache.schema import CRC_BYTES, LEDGER_FILES, Schema, sync

Place = tuple[int, int]
"""Block and view."""


@dataclass(frozen=True)
class Entry:
    """One view of one block is written.

    crc: of its chunk of every field, eight hex digits, as the chunk's own last bytes say it. facts:
    whatever the writer was told about it. taken: over from an earlier store, not computed for this
    one (only a store in the making remembers that).
    """

    block: int
    view: int
    crc: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    taken: bool = False

    @property
    def place(self) -> Place:
        return self.block, self.view

    def as_json(self) -> dict[str, Any]:
        """How a sealed store says it: the same whether it was computed or taken over."""
        plain = {"block": self.block, "view": self.view, "crc": self.crc}
        return plain | ({"facts": self.facts} if self.facts else {})


def stored_crc(path: Path, size: int) -> str | None:
    """The CRC at the end of a chunk file; None where the file isn't there in its full size."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() != size + CRC_BYTES:
                return None
            file.seek(size)
            return f"{int.from_bytes(file.read(CRC_BYTES), 'little'):08x}"
    except FileNotFoundError:
        return None


class Ledger:
    """JSON lines beside the arrays of an unfinished store.

    Each builder begins by putting what is there into one file, whose name has the builder's own
    token; each of its processes appends to a file of its own. So processes on several machines keep
    out of each other's lines, and nobody appends to a line that a crash tore. Every line says of
    which store it speaks: a process of an earlier builder, still alive, may not know that another
    has taken its place.
    """

    def __init__(self, root: Path, build: str, token: str, rank: int = 0) -> None:
        """build: the store's own mark, from its attributes."""
        self.root, self.build = root, build
        self.path = root / f"ledger.{token}.{rank}.jsonl"

    @classmethod
    def begin(
        cls, root: Path, schema: Schema, build: str, token: str, *, taken: bool = True
    ) -> Ledger:
        """Put every line that the files bear out into a file of this token; remove the others.

        taken: also those of chunks that were taken over.
        """
        entries = [e for e in read(root, schema, build).values() if taken or not e.taken]
        before = [*root.glob(LEDGER_FILES)]
        ledger = cls(root, build, token)
        aside = root / "ledger.partial"
        aside.write_text("".join(map(ledger._line, entries)))
        sync(aside)
        aside.replace(ledger.path)
        sync(root)
        for path in before:
            path.unlink()
        return ledger

    def append(self, entries: Iterable[Entry]) -> None:
        """Add entries; they are on disk when this returns."""
        with self.path.open("a") as file:
            file.writelines(map(self._line, entries))
            file.flush()
            os.fsync(file.fileno())

    def _line(self, entry: Entry) -> str:
        line = {"build": self.build, "taken": entry.taken, **entry.as_json()}
        return json.dumps(line) + "\n"


def read(root: Path, schema: Schema, build: str) -> dict[Place, Entry]:
    """What an unfinished store's ledger files say, as far as the chunks bear it out.

    A line that a crash tore doesn't count, nor does one of another build, nor one whose chunk isn't
    there whole (a power cut can keep a line and lose a file's name).
    """
    lines = [
        json.loads(line)
        for path in sorted(root.glob(LEDGER_FILES))
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
    entries = [Entry(**line) for line in lines if line.pop("build") == build]
    return {entry.place: entry for entry in entries if is_there(root, schema, entry)}


def is_there(root: Path, schema: Schema, entry: Entry) -> bool:
    """Whether the chunks of an entry end with the CRCs that it says."""
    return schema.fields.keys() <= entry.crc.keys() and all(
        stored_crc(schema.chunk_file(root, name, *entry.place), schema.chunk_bytes(name))
        == entry.crc[name]
        for name in schema.fields
    )


def from_attributes(attributes: Mapping[str, Any]) -> dict[Place, Entry]:
    """The ledger of a sealed store."""
    entries = [Entry(**line) for line in attributes["ledger"]]
    return {entry.place: entry for entry in entries}
