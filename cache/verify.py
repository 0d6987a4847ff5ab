"""Is a store what was written? Every byte of every file against its checksum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deskpro.cache.chunk import check_chunk
from deskpro.cache.errors import DamagedError, absent, unfinished
from deskpro.cache.schema import PLAIN_GROUP, Record, Schema
from deskpro.cache.sealed import INDEX, METADATA, checked, read_seal
from deskpro.cache.store import group_folders, is_empty, read_attributes


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
    if is_empty(root):
        raise absent(root)
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
    except DamagedError as error:
        yield Damage(folder / INDEX, error.why)
        return
    if seal is None:
        yield Damage(folder, "not finished")
        return
    yield Damage(folder / INDEX, "")
    for name in seal.files:
        what = _problem(checked, folder, name, seal.files)
        yield Damage(folder / name, what)
        if what and name == METADATA:
            return
    if seal.chunks:
        schema = Schema.from_json(read_attributes(folder, seal))
        for record in map(Record.from_json, seal.chunks):
            for file in schema.chunk_files(folder, record):
                yield Damage(file[0], _problem(check_chunk, *file), *record.key)


def _problem(check: Callable[..., object], *args: object) -> str:
    """Why a check finds damage; "" where it finds none."""
    try:
        check(*args)
    except DamagedError as error:
        return error.why
    return ""
