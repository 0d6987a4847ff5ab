"""Write targets block by block; the store appears under its name when the last block is in."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np
import zarr

from cache.errors import CacheError
from cache.fingerprint import differences, sample_differences
from cache.ledger import Entry, Ledger, Place, from_attributes, stored_crc
from cache.schema import (
    LEDGER_FILES,
    METADATA,
    Columns,
    Schema,
    create,
    is_sealed,
    open_store,
    plain_files,
    read_columns,
    read_schema,
    seal,
    sync,
)


@dataclass(frozen=True)
class Team:
    """The processes that build one store together; alone where not given.

    barrier: returns when every process has called it.
    """

    rank: int = 0
    size: int = 1
    barrier: Callable[[], None] = lambda: None


class TargetWriter:
    """A target cache in the making, in a folder beside its final name.

    A block — its samples, all fields, the views that are still missing — is a transaction: its
    chunk files are written and synced, then a ledger lists them. An unfinished store of the same
    fingerprint, columns and schema is continued where its ledger ends. One that was begun otherwise
    is refused, by name of what differs, unless it loses nothing by it or `replace` says so.

    Chunks of an earlier store — the sealed one that will be replaced, or an unfinished one — are
    taken over (hard-linked) where everything that they depend on is the same: the fingerprint and
    the rows of every column. So a changed picture costs its block, and more views cost only
    themselves.

    With a team, rank 0 prepares and seals, and each process writes blocks of its own. Only rank 0
    holds the lock, which lasts as long as its process.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        columns: Columns,
        fingerprint: Mapping[str, Any],
        *,
        replace: bool = False,
        reuse: bool = True,
        team: Team | None = None,
    ) -> None:
        """reuse: take over chunks of an earlier store. CacheError: another process builds it."""
        self.path, self.schema = path, schema
        self.root = path.with_name(path.name + ".partial")
        self._earlier = path.with_name(path.name + ".earlier")
        self._replaced = path.with_name(path.name + ".old")
        self._team = team or Team()
        self._lock: IO[str] | None = None
        if self._team.rank == 0:
            self._lock = _take_lock(path.with_name(f".{path.name}.lock"))
            try:
                self._prepare(columns, fingerprint, replace=replace, reuse=reuse)
            except BaseException:
                self.close()
                raise
        self._team.barrier()
        self._group = zarr.open_group(self.root, mode="r+")
        self._ledger = Ledger(self.root, self._team.rank)
        self._written = self._read()
        missing = [
            block
            for block in range(schema.blocks)
            if any((block, view) not in self._written for view in range(schema.views))
        ]
        self.mine = missing[self._team.rank :: self._team.size]
        """The blocks that this process is to write, in order."""
        self.there = schema.blocks * schema.views - sum(len(self.views(b)) for b in missing)
        """How many (block, view) were there when this writer was opened."""
        self._team.barrier()  # nobody writes before everybody has read
        if self.mine:
            self._ledger.mend()

    def views(self, block: int) -> list[int]:
        """The views of a block that are still to be written."""
        return [v for v in range(self.schema.views) if (block, v) not in self._written]

    def write(
        self, block: int, targets: Mapping[str, np.ndarray], facts: Mapping[str, Any] | None = None
    ) -> None:
        """Write what a block lacks: for each field an array [rows, len(views(block)), *shape].

        facts: kept with it in the ledger, as JSON. Raises CacheError where fields, shapes or types
        aren't the schema's, and writes nothing.
        """
        rows, views = self.schema.rows(block), self.views(block)
        if set(targets) != set(self.schema.fields):
            wanted = ", ".join(self.schema.fields)
            raise CacheError(f"block {block}: fields {', '.join(targets)}, the cache has {wanted}")
        for name, field in self.schema.fields.items():
            shape = (rows.stop - rows.start, len(views), *field.shape)
            found = targets[name]
            if found.shape != shape or found.dtype != np.dtype(field.dtype):
                raise CacheError(
                    f"block {block}: {name} is {found.dtype}{list(found.shape)}, "
                    f"must be {field.dtype}{list(shape)}"
                )
        entries = []
        for i, view in enumerate(views):
            crc = {}
            for name in self.schema.fields:
                self._group[name][rows, view] = targets[name][:, i]  # type: ignore[index]
                file = self.schema.chunk_file(self.root, name, block, view)
                sync(file)
                found_crc = stored_crc(file, self.schema.chunk_bytes(name))
                assert found_crc is not None, f"zarr wrote {file} otherwise than the schema says"
                crc[name] = found_crc
            entries.append(Entry(block, view, crc, dict(facts or {})))
        self._ledger.append(entries)
        self._written |= {entry.place: entry for entry in entries}

    def seal(self) -> None:
        """Give the complete store its name; a store of that name is replaced."""
        self._team.barrier()
        if self._team.rank == 0:
            self._seal()
        self._team.barrier()
        self.close()

    def close(self) -> None:
        """Let another writer go on; what is written stays."""
        if self._lock is not None:
            self._lock.close()

    def _seal(self) -> None:
        self._written = self._read()
        missing = [place for place in self.schema.places() if place not in self._written]
        if missing:
            blocks = sorted({block for block, _ in missing})
            raise CacheError(f"{self.path}: blocks {blocks} aren't written, can't be sealed")
        if not is_sealed(open_store(self.root)[1]):
            seal(self.root, [self._written[place].as_json() for place in self.schema.places()])
        self._ledger.remove()
        _sync_tree(self.root)
        _remove(self._replaced)
        if self.path.exists():
            self.path.rename(self._replaced)
        self.root.rename(self.path)
        sync(self.path.parent)
        _remove(self._replaced)
        _remove(self._earlier)

    def _read(self) -> dict[Place, Entry]:
        attributes = open_store(self.root)[1]
        if is_sealed(attributes):  # killed between being sealed and being named
            return from_attributes(attributes)
        return self._ledger.read(self.schema)

    def _prepare(
        self, columns: Columns, fingerprint: Mapping[str, Any], *, replace: bool, reuse: bool
    ) -> None:
        """Leave at `root` an unfinished store of these options, with what could be taken over."""
        begun = _Store.open(self.root)
        if begun is None:  # nothing there, or killed while it was being created
            _remove(self.root)
        elif not begun.is_of(self.schema, columns, fingerprint):
            lost = begun.lost_by(self.schema, columns, fingerprint)
            if lost and not replace:
                raise CacheError(
                    f"{self.root}: was begun otherwise: {'; '.join(lost)}. Set that back to go on "
                    "with it, or type make teacher-cache FORCE=1 to keep only what is the same"
                )
            _remove(self._earlier)
            self.root.rename(self._earlier)
            begun = None
        if begun is None:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            create(self.root, self.schema, columns, fingerprint)
            _sync_tree(self.root)
        elif begun.sealed:
            return
        ledger = Ledger(self.root)
        ledger.mend()
        _sweep(self.root, self.schema, ledger.read(self.schema))
        if reuse:
            for path in (self.path, self._replaced, self._earlier):
                self._take_over(path, columns, fingerprint, ledger)

    def _take_over(
        self, path: Path, columns: Columns, fingerprint: Mapping[str, Any], ledger: Ledger
    ) -> None:
        """Link into the new store every chunk of an earlier one that would come out the same."""
        earlier = _Store.open(path)
        if earlier is None or not earlier.is_like(self.schema, fingerprint):
            return
        written = ledger.read(self.schema)
        for place, entry in earlier.ledger.items():
            if place in written or not earlier.says(place, self.schema, columns):
                continue
            if all(self._link(path, name, entry) for name in self.schema.fields):
                ledger.append([entry])

    def _link(self, earlier: Path, name: str, entry: Entry) -> bool:
        source = self.schema.chunk_file(earlier, name, *entry.place)
        target = self.schema.chunk_file(self.root, name, *entry.place)
        content = source.read_bytes() if source.is_file() else b""
        size = self.schema.chunk_bytes(name)
        if f"{google_crc32c.value(content[:size]):08x}" != entry.crc[name]:
            return False  # damaged: it is made anew
        if stored_crc(source, size) != entry.crc[name]:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)  # no store ever changes a chunk that a ledger lists
        except OSError:
            shutil.copyfile(source, target)
        sync(target)
        return True


@dataclass(frozen=True)
class _Store:
    """A store that is already there, sealed or not."""

    schema: Schema
    columns: Columns
    fingerprint: dict[str, Any]
    ledger: dict[Place, Entry]
    sealed: bool

    @classmethod
    def open(cls, root: Path) -> _Store | None:
        """None where there is none that can be read."""
        with suppress(CacheError, KeyError, AssertionError):
            group, attributes = open_store(root)
            schema, sealed = read_schema(group, attributes), is_sealed(attributes)
            ledger = from_attributes(attributes) if sealed else Ledger(root).read(schema)
            columns = read_columns(root, group, attributes)
            return cls(schema, columns, attributes["fingerprint"], ledger, sealed)
        return None

    def is_of(self, schema: Schema, columns: Columns, fingerprint: Mapping[str, Any]) -> bool:
        return (
            self.schema == schema
            and self.is_like(schema, fingerprint)
            and self.columns.keys() == columns.keys()
            and all(np.array_equal(self.columns[n].values, columns[n].values) for n in columns)
        )

    def is_like(self, schema: Schema, fingerprint: Mapping[str, Any]) -> bool:
        """Whether its chunks, of the same samples, may be those of another store."""
        return (
            self.schema.fields == schema.fields
            and self.schema.block == schema.block
            and self.fingerprint.keys() == fingerprint.keys()
            and not differences(self.fingerprint, fingerprint)
        )

    def says(self, place: Place, schema: Schema, columns: Columns) -> bool:
        """Whether its chunks at a place are about the same as another store's will be."""
        block, view = place
        rows = schema.rows(block)
        if block >= schema.blocks or view >= schema.views or rows != self.schema.rows(block):
            return False
        return self.columns.keys() == columns.keys() and all(
            np.array_equal(self.columns[name].of(rows, view), columns[name].of(rows, view))
            for name in columns
        )

    def lost_by(
        self, schema: Schema, columns: Columns, fingerprint: Mapping[str, Any]
    ) -> list[str]:
        """Why going on with these options would waste something that is written."""
        if self.is_like(schema, fingerprint) and all(
            self.says(place, schema, columns) for place in self.ledger
        ):
            return []
        mine = {name: column.values for name, column in self.columns.items()}
        theirs = {name: column.values for name, column in columns.items()}
        lines = differences(self.fingerprint, fingerprint)
        lines += sample_differences(mine, theirs)
        for what in ("samples", "views", "block"):
            before, now = getattr(self.schema, what), getattr(schema, what)
            if before != now:
                lines.append(f"{what} were {before}, are {now}")
        return lines or ["its arrays have other shapes or types"]


def _sweep(root: Path, schema: Schema, written: Mapping[Place, Entry]) -> None:
    """Remove what a kill left half-written: files that neither the ledger lists nor the store."""
    whole = {schema.chunk_file(root, name, *place) for name in schema.fields for place in written}
    whole |= {root / METADATA, *root.glob(LEDGER_FILES)}
    whole |= {*plain_files(root, open_store(root)[1])}
    for file in root.rglob("*"):
        if file.is_file() and file not in whole:
            file.unlink()


def _take_lock(path: Path) -> IO[str]:
    """Hold the only writer's place while the file is open; the system frees it at a death."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise CacheError(f"{path.parent}: {owner} is building this cache; wait for it") from None
    file.truncate(0)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    file.write(f"process {os.getpid()} on {platform.node()}, since {started},")
    file.flush()
    return file


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
