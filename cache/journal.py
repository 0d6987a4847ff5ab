"""Lines of JSON that are on disk when they are written, whatever happens next."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deskpro.cache.files import read_bytes, sync, write_aside, writing


class Journal:
    """A file of JSON objects, one a line.

    A crash may tear the last lines. They are ignored, and cut off before anything is appended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checked = False

    def read(self) -> list[dict[str, Any]]:
        """The records as far as they are whole; none where there is no file."""
        return self._whole()[0]

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records; they are on disk when this returns."""
        text = "".join(map(_line, records))
        if not text:
            return
        with writing(self.path):
            if not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.open("ab").close()
                sync(self.path.parent)
            elif not self._checked:
                end = self._whole()[1]
                if end < self.path.stat().st_size:
                    with self.path.open("r+b") as file:
                        file.truncate(end)
            self._checked = False  # until this line is whole
            with self.path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            self._checked = True

    def rewrite(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace all records; a crash leaves the old ones or the new ones."""
        with write_aside(self.path) as aside, aside.open("wb") as file:
            file.writelines(_line(record).encode() for record in records)
        self._checked = True

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)
        self._checked = False

    def _whole(self) -> tuple[list[dict[str, Any]], int]:
        """The whole records, and where they end in the file, in bytes."""
        records: list[dict[str, Any]] = []
        end = 0
        try:
            content = read_bytes(self.path)
        except FileNotFoundError:
            return records, end
        for line in content.splitlines(keepends=True):
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if not isinstance(record, dict):
                break
            records.append(record)
            end += len(line)
        return records, end


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
