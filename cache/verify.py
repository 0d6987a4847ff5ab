"""Is a store what was written? Every byte of every file against its checksum."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deskpro.cache.errors import CacheError
from deskpro.cache.files import crc32c
from deskpro.cache.schema import (
    CRC_BYTES,
    INDEX,
    METADATA,
    PLAIN_GROUP,
    Record,
    Schema,
    read_index,
)
from deskpro.cache.store import checked, group_folders, read_attributes, unfinished


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written; block and view where it holds targets."""

    file: Path
    what: str
    block: int | None = None
    view: int | None = None

    def __str__(self) -> str:
        place = "" if self.block is None else f"block {self.block}, view {self.view}: "
        return f"{self.file}: {place}{self.what}"


def verify(root: Path) -> list[Damage]:
    """Everything that is wrong with a finished store; empty where nothing is.

    Files are checked against the index of the root or of their group, and the index against its own
    hash. Files that no index names are damage, too, as is a group that is not finished.

    Raises:
        CacheError: there is no finished store.
    """
    if not root.exists():
        raise CacheError(f"{root}: no target cache here. To build it: make teacher-cache")
    check = _Check(root)
    if not check.files(root):
        if not check.found:
            raise unfinished(root)
        return check.found
    for folder in group_folders(root):
        check.group(folder)
        for parent in folder.relative_to(root).parents[:-1]:
            check.plain_group(root / parent / METADATA)
    return check.found + check.unknown()


class _Check:
    """The damage of a store so far, and the files that are accounted for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.found: list[Damage] = []
        self._known: set[Path] = set()
        self._unread: list[Path] = []
        """Groups of which it can't be told what belongs to them."""

    def files(self, folder: Path) -> dict[str, Any] | None:
        """Check the files that an index names; None where it isn't there or is damaged."""
        self._known.add(folder / INDEX)
        try:
            index = read_index(folder)
        except CacheError:
            self.found.append(Damage(folder / INDEX, "its checksum differs"))
            return None
        for name in index["files"] if index else ():
            self._known.add(folder / name)
            try:
                checked(folder, name, index["files"] if index else {})
            except CacheError as error:
                self.found.append(Damage(folder / name, str(error)))
        return index

    def group(self, folder: Path) -> None:
        """Check a group's files and chunks."""
        index = self.files(folder)
        try:
            if index is None:
                if not (folder / INDEX).exists():
                    self.found.append(Damage(folder, "not finished"))
                raise unfinished(folder)
            schema = Schema.from_json(read_attributes(folder, index))
        except CacheError:
            self._unread.append(folder)
            return
        records = {record.key: record for record in map(Record.from_json, index["chunks"])}
        for key in schema.chunk_keys():
            for name in schema.fields:
                file = schema.chunk_file(folder, name, *key)
                self._known.add(file)
                record = records.get(key)
                what = "it has no record" if record is None else _chunk(file, record.crc[name])
                if what:
                    self.found.append(Damage(file, what, *key))

    def plain_group(self, path: Path) -> None:
        """Check the metadata of a folder between the root and its groups."""
        if path not in self._known and not (path.is_file() and path.read_bytes() == PLAIN_GROUP):
            self.found.append(Damage(path, "its content differs from that of a plain group"))
        self._known.add(path)

    def unknown(self) -> list[Damage]:
        """Files that do not belong to the store."""
        return [
            Damage(path, "not a file of this store")
            for path in sorted(self.root.rglob("*"))
            if path not in self._known
            and path.is_file()
            and not any(path.is_relative_to(folder) for folder in self._unread)
        ]


def _chunk(file: Path, crc: str) -> str:
    """What is wrong with a chunk file."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return "the file is gone"
    except OSError as error:
        return f"unreadable: {error}"
    own = f"{int.from_bytes(content[-CRC_BYTES:], 'little'):08x}"
    if crc32c(content[:-CRC_BYTES]) != own:
        return "its checksum differs"
    return "" if own == crc else "it is not the chunk of its record"
