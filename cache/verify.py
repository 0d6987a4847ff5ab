"""Is a store what was written? Every byte of every file against its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deskpro.cache.errors import CacheError, DamagedError, unfinished
from deskpro.cache.files import crc32c
from deskpro.cache.schema import CRC_BYTES, METADATA, PLAIN_GROUP, Record, Schema, stored_crc
from deskpro.cache.sealed import INDEX, checked, read_seal
from deskpro.cache.store import group_folders, read_attributes


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

    Files are checked against the seal of the root or of their group, and the seal against its own
    hash. Files that no seal names are damage, too, as is a group that is not finished.

    Raises:
        CacheError: there is no finished store.
    """
    if not root.exists():
        raise CacheError(f"{root}: no target cache here. To build it: make teacher-cache")
    if not (root / INDEX).exists():
        raise unfinished(root)
    groups = [*group_folders(root)]
    files = [file for folder in (root, *groups) for file in _files(folder)]
    between = {parent for folder in groups for parent in folder.relative_to(root).parents}
    for parent in sorted(between - {Path()}):
        path = root / parent / METADATA
        same = path.is_file() and path.read_bytes() == PLAIN_GROUP
        files.append(Damage(path, "" if same else "not the metadata of a plain group"))
    found = [file for file in files if file.what]
    # What lies in a folder whose own files can't be read is unknown.
    damaged, known = {damage.file for damage in found}, {file.file for file in files}
    unread = [f for f in (root, *groups) if {f, f / INDEX, f / METADATA} & damaged]
    return found + [
        Damage(path, "not a file of this store")
        for path in sorted(root.rglob("*"))
        if path not in known
        and path.is_file()
        and not any(path.is_relative_to(folder) for folder in unread)
    ]


def _files(folder: Path) -> Iterator[Damage]:
    """Every file of a root or a group, and what is wrong with it: nothing, where that is empty."""
    try:
        seal = read_seal(folder)
    except DamagedError:
        yield Damage(folder / INDEX, "its checksum differs")
        return
    if seal is None:
        yield Damage(folder, "not finished")
        return
    yield Damage(folder / INDEX, "")
    for name in seal.files:
        try:
            checked(folder, name, seal.files)
            yield Damage(folder / name, "")
        except DamagedError:
            there = (folder / name).is_file()
            yield Damage(folder / name, "its checksum differs" if there else "the file is gone")
            if name == METADATA:
                return
    if seal.chunks:
        schema = Schema.from_json(read_attributes(folder, seal))
        for record in map(Record.from_json, seal.chunks):
            for name, crc in record.crc.items():
                file = schema.chunk_file(folder, name, *record.key)
                yield Damage(file, _chunk(file, crc), *record.key)


def _chunk(file: Path, crc: str) -> str:
    """What is wrong with a chunk file."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return "the file is gone"
    except OSError as error:
        return f"unreadable: {error}"
    own = stored_crc(content)
    if crc32c(content[:-CRC_BYTES]) != own:
        return "its checksum differs"
    return "" if own == crc else "it is not the chunk of its record"
