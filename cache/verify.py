"""Is a store what was written? Every byte of every file against its checksum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deskpro.cache.chunk import check_chunk
from deskpro.cache.errors import CacheError, DamagedError, absent, unfinished
from deskpro.cache.schema import PLAIN_GROUP, Schema
from deskpro.cache.sealed import INDEX, METADATA, checked, inside, read_seal
from deskpro.cache.store import group_folders, is_empty, lost_seal, read_attributes, read_records

FOREIGN = "not a file of this store"


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
    hash. Files that no seal names are damage, too, as is a group that is not finished. A seal that
    was removed is damage: a root or a group in the making has a journal, or nothing yet.

    Raises:
        CacheError: there is no finished store.
    """
    if is_empty(root):
        raise absent(root)
    groups = [*group_folders(root)]
    if not (root / INDEX).exists() and not (groups and lost_seal(root)):
        raise unfinished(root)
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
        Damage(path, FOREIGN)
        for path in sorted(root.rglob("*"))
        if path not in known
        and (path.is_file() or path.is_symlink())
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
        gone = lost_seal(folder)
        yield Damage(folder / INDEX, "the file is gone") if gone else Damage(folder, "not finished")
        return
    yield Damage(folder / INDEX, "")
    for name in seal.files:
        what = _problem(checked, folder, name, seal.files)
        yield Damage(folder / name, what)
        if what and name == METADATA:
            return
    if seal.chunks:
        try:
            schema = Schema.from_json(read_attributes(folder, seal))
            records = read_records(folder, seal)
            for name in schema.fields:
                inside(folder, f"{name}/{METADATA}")
        except (CacheError, KeyError, TypeError, ValueError) as error:
            yield Damage(folder, f"it has other content: {error}")
            return
        for record in records.values():
            for file in schema.chunk_files(folder, record):
                yield Damage(file[0], _problem(check_chunk, *file), *record.key)


def _problem(check: Callable[..., object], *args: object) -> str:
    """Why a check finds damage; "" where it finds none."""
    try:
        check(*args)
    except DamagedError as error:
        return error.why
    return ""
