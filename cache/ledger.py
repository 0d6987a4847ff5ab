"""The ledger of a store in the making: what it lists is there, what it doesn't list never was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.schema import CRC_BYTES, LEDGER_FILES, Schema

Place = tuple[int, int]
"""Block and view."""


@dataclass(frozen=True)
class Entry:
    """One view of one block is written.

    crc: of its chunk of every field, eight hex digits, as the chunk's own last bytes say it. facts:
    whatever the writer was told about it.
    """

    block: int
    view: int
    crc: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        return self.block, self.view

    def as_json(self) -> dict[str, Any]:
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
    except OSError:
        return None


class Ledger:
    """JSON lines beside the arrays of an unfinished store, in a file for each process.

    A file of its own keeps processes on one file system, or on several machines, out of each
    other's lines.
    """

    def __init__(self, root: Path, rank: int = 0) -> None:
        self.root, self.path = root, root / f"ledger.{rank}.jsonl"

    def read(self, schema: Schema) -> dict[Place, Entry]:
        """What all processes wrote, as far as the files bear it out.

        A line that a crash tore doesn't count, nor does one whose chunk isn't there whole (a power
        cut can keep a line and lose a file's name).
        """
        entries = [
            Entry(**json.loads(line))
            for path in sorted(self.root.glob(LEDGER_FILES))
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]
        return {entry.place: entry for entry in entries if self._is_there(schema, entry)}

    def _is_there(self, schema: Schema, entry: Entry) -> bool:
        return entry.crc.keys() == schema.fields.keys() and all(
            stored_crc(schema.chunk_file(self.root, name, *entry.place), schema.chunk_bytes(name))
            == crc
            for name, crc in entry.crc.items()
        )

    def mend(self) -> None:
        """Cut off a torn last line of this process's file, so that the next starts anew."""
        self.path.touch()
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            self.path.write_bytes(whole)

    def append(self, entries: Iterable[Entry]) -> None:
        """Add entries; they are on disk when this returns."""
        with self.path.open("a") as file:
            file.writelines(json.dumps(entry.as_json()) + "\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """The store is complete, and says so itself."""
        for path in self.root.glob(LEDGER_FILES):
            path.unlink()


def from_attributes(attributes: Mapping[str, Any]) -> dict[Place, Entry]:
    """The ledger of a sealed store."""
    entries = [Entry(**line) for line in attributes["ledger"]]
    return {entry.place: entry for entry in entries}
