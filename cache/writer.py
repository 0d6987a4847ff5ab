"""Write targets block by block; the store appears under its name when the last block is in."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr

from deskpro.cache import ledger as ledgers
from deskpro.cache.errors import CacheError
from deskpro.cache.fingerprint import differences, sample_differences
from deskpro.cache.ledger import Entry, Ledger, Place, from_attributes, stored_crc
from deskpro.cache.lock import BuildLock
from deskpro.cache.schema import (
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

    share gives everybody what the first process put in; gather gives everybody what each put in.
    Both wait for all.
    """

    rank: int = 0
    size: int = 1
    share: Callable[[Any], Any] = lambda value: value
    gather: Callable[[Any], list[Any]] = lambda value: [value]


class TargetWriter:
    """A target cache in the making, in a folder beside its final name.

    A block — its samples, all fields, the views that are still missing — is a transaction: its
    chunk files are written and synced, then a ledger lists them. An unfinished store of the same
    fingerprint, columns and schema is continued where its ledger ends. A store, finished or not,
    that would be lost — another fingerprint, other samples, fewer views — is refused, by name of
    what differs, unless `replace` says so.

    Chunks of an earlier store are taken over (hard-linked) where everything that they depend on is
    the same: the fingerprint and the rows of every column. So a changed image costs its block,
    and more views cost only themselves.

    With a team, the first process prepares and seals, and each writes blocks of its own. What is
    missing, and what was written, they tell each other; they don't read it off a file system that
    may be late. Only the first holds the lock.
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
        """reuse: take over chunks of an earlier store.

        Raises CacheError where another process builds it, where a store would be lost, and where
        this process would build another one than the first of its team.
        """
        self.path, self.schema = path, schema
        self.root = path.with_name(path.name + ".partial")
        self._replaced = path.with_name(path.name + ".old")
        self._team = team or Team()
        self._lock: BuildLock | None = None
        token, written = uuid.uuid4().hex, []
        if self._team.rank == 0:
            self._lock = BuildLock(path)
            try:
                self._prepare(columns, fingerprint, token, replace=replace, reuse=reuse)
                written = [*_Store.open(self.root).ledger]
            except BaseException:
                self.close()
                raise
        token, written = self._team.share((token, written))
        begun = _Store.open(self.root)
        if not begun.is_of(schema, columns, fingerprint):
            raise CacheError(
                f"{self.root}: process {self._team.rank} would build another cache than the first: "
                f"{'; '.join(begun.differences(schema, columns, fingerprint))}"
            )
        self._group = zarr.open_group(self.root, mode="r+")
        self._ledger = Ledger(self.root, begun.build, token, self._team.rank)
        self._missing: dict[int, list[int]] = {}
        for block, view in schema.places():
            if (block, view) not in set(written):
                self._missing.setdefault(block, []).append(view)
        self.mine = [*self._missing][self._team.rank :: self._team.size]
        """The blocks that this process is to write, in order."""
        self.there = len(written)
        """How many (block, view) were there when this writer was opened."""
        self._done: list[Entry] = []

    def views(self, block: int) -> list[int]:
        """The views of a block that were missing when this writer was opened."""
        return self._missing.get(block, [])

    def write(
        self,
        block: int,
        targets: Mapping[str, np.ndarray],
        facts: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        """Write what a block lacks: for each field an array [rows, len(views(block)), *shape].

        facts: by view, kept with it in the ledger, as JSON. Raises CacheError where fields, shapes
        or types aren't the schema's, and writes nothing.
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
                file = self.schema.chunk_file(self.root, name, block, view)
                file.unlink(missing_ok=True)  # never write into what another store may link to
                self._group[name][rows, view] = targets[name][:, i]  # type: ignore[index]
                sync(file)
                found_crc = stored_crc(file, self.schema.chunk_bytes(name))
                assert found_crc is not None, f"zarr wrote {file} otherwise than the schema says"
                crc[name] = found_crc
            entries.append(Entry(block, view, crc, dict((facts or {}).get(view, {}))))
        self._ledger.append(entries)
        self._done += entries

    def seal(self) -> None:
        """Give the complete store its name; a store of that name is replaced."""
        done = self._team.gather(self._done)
        if self._team.rank == 0:
            self._seal([entry for entries in done for entry in entries])
        self._team.share(None)  # nobody leaves before the store has its name
        self.close()

    def close(self) -> None:
        """Let another writer go on; what is written stays."""
        if self._lock is not None:
            self._lock.release()

    def _seal(self, done: list[Entry]) -> None:
        begun = _Store.open(self.root)
        if not begun.sealed:  # else it was killed between being sealed and being named
            written = begun.ledger | {
                entry.place: entry
                for entry in done
                if ledgers.is_there(self.root, self.schema, entry)
            }
            missing = [place for place in self.schema.places() if place not in written]
            if missing:
                blocks = sorted({block for block, _ in missing})
                raise CacheError(f"{self.path}: blocks {blocks} aren't written, can't be sealed")
            seal(self.root, [written[place].as_json() for place in self.schema.places()])
        for file in self.root.glob(LEDGER_FILES):
            file.unlink()
        _sync_tree(self.root)
        _remove(self._replaced)
        if self.path.exists():
            self.path.rename(self._replaced)
        self.root.rename(self.path)
        sync(self.path.parent)
        _remove(self._replaced)
        for folder in self._earlier():
            _remove(folder)

    def _prepare(
        self,
        columns: Columns,
        fingerprint: Mapping[str, Any],
        token: str,
        *,
        replace: bool,
        reuse: bool,
    ) -> None:
        """Leave at `root` an unfinished store of these options, with what could be taken over."""
        for path in (self.root, self.path):
            if path.exists() and not replace:
                begun = _Store.open(path)
                if begun.loses(self.schema, columns, fingerprint):
                    lines = begun.differences(self.schema, columns, fingerprint)
                    raise CacheError(
                        f"{path}: was {'made' if begun.sealed else 'begun'} otherwise: "
                        f"{'; '.join(lines)}. Set that back to go on with it, or type "
                        "make teacher-cache FORCE=1 to keep only what is the same"
                    )
        if self.root.exists():
            begun_or_none = _Store.try_open(self.root)
            same = begun_or_none is not None and begun_or_none.is_of(
                self.schema, columns, fingerprint
            )
            if not same:
                numbers = [int(path.suffix[1:]) for path in self._earlier()]
                self.root.rename(self._earlier_name(max(numbers, default=0) + 1))
        if not self.root.exists():
            # Under another name until it can be opened: what is there under its own is work.
            creating = self.path.with_name(self.path.name + ".creating")
            _remove(creating)
            self.root.parent.mkdir(parents=True, exist_ok=True)
            create(creating, self.schema, columns, fingerprint)
            _sync_tree(creating)
            creating.rename(self.root)
        begun = _Store.open(self.root)
        if begun.sealed:
            return
        ledger = Ledger.begin(self.root, self.schema, begun.build, token, taken=reuse)
        written = ledgers.read(self.root, self.schema, begun.build)
        remove_partials(self.root, self.schema, written)
        if reuse:
            for path in (self.path, self._replaced, *self._earlier()):
                if path.exists():
                    self._take_over(path, columns, fingerprint, ledger, written)

    def _earlier_name(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.earlier.{number}")

    def _earlier(self) -> list[Path]:
        """Unfinished stores of other options, newest first."""
        found = self.path.parent.glob(f"{self.path.name}.earlier.*")
        return sorted(found, key=lambda path: -int(path.suffix[1:]))

    def _take_over(
        self,
        path: Path,
        columns: Columns,
        fingerprint: Mapping[str, Any],
        ledger: Ledger,
        written: dict[Place, Entry],
    ) -> None:
        """Link into the new store every chunk of an earlier one that would come out the same."""
        earlier = _Store.try_open(path)
        if earlier is None or not earlier.is_like(self.schema, fingerprint):
            return
        for place, entry in earlier.ledger.items():
            if place in written or not earlier.says(place, self.schema, columns):
                continue
            if all(self._whole(path, name, entry) for name in self.schema.fields):
                for name in self.schema.fields:
                    self._link(path, name, place)
                written[place] = Entry(*place, entry.crc, entry.facts, taken=True)
                ledger.append([written[place]])

    def _whole(self, root: Path, name: str, entry: Entry) -> bool:
        """Whether a chunk is as it was written; a damaged one is made anew."""
        file, size = self.schema.chunk_file(root, name, *entry.place), self.schema.chunk_bytes(name)
        if stored_crc(file, size) != entry.crc[name]:
            return False
        return f"{google_crc32c.value(file.read_bytes()[:size]):08x}" == entry.crc[name]

    def _link(self, earlier: Path, name: str, place: Place) -> None:
        source = self.schema.chunk_file(earlier, name, *place)
        target = self.schema.chunk_file(self.root, name, *place)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)  # no store ever changes a chunk that a ledger lists
        except OSError:
            shutil.copyfile(source, target)
        sync(target)


@dataclass(frozen=True)
class _Store:
    """A store that is already there, sealed or not."""

    schema: Schema
    columns: Columns
    fingerprint: dict[str, Any]
    ledger: dict[Place, Entry]
    build: str
    """Its mark while it is unfinished."""
    sealed: bool

    @classmethod
    def open(cls, root: Path) -> _Store:
        """Raises CacheError where it can't be read."""
        group, attributes = open_store(root)
        schema, sealed = read_schema(group, attributes), is_sealed(attributes)
        build = attributes.get("build", "")
        ledger = from_attributes(attributes) if sealed else ledgers.read(root, schema, build)
        columns = read_columns(root, group, attributes)
        return cls(schema, columns, attributes["fingerprint"], ledger, build, sealed)

    @classmethod
    def try_open(cls, root: Path) -> _Store | None:
        """None where it can't be read: there is nothing to be taken over."""
        try:
            return cls.open(root)
        except CacheError:
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

    def loses(self, schema: Schema, columns: Columns, fingerprint: Mapping[str, Any]) -> bool:
        """Whether going on with these options would waste something that is written."""
        return bool(self.ledger) and not (
            self.is_like(schema, fingerprint)
            and all(self.says(place, schema, columns) for place in self.ledger)
        )

    def differences(
        self, schema: Schema, columns: Columns, fingerprint: Mapping[str, Any]
    ) -> list[str]:
        """How it differs from another store, in words; never empty."""
        mine = {name: column.values for name, column in self.columns.items()}
        theirs = {name: column.values for name, column in columns.items()}
        lines = differences(self.fingerprint, fingerprint)
        lines += sample_differences(mine, theirs)
        for what in ("samples", "views", "block"):
            before, now = getattr(self.schema, what), getattr(schema, what)
            if before != now:
                lines.append(f"{what} was {before}, is {now}")
        return lines or ["its arrays have other names, shapes or types"]


def remove_partials(root: Path, schema: Schema, written: Mapping[Place, Entry]) -> None:
    """Remove what a kill left half-written: files that neither the ledger lists nor the store."""
    whole = {schema.chunk_file(root, name, *place) for name in schema.fields for place in written}
    whole |= {root / METADATA, *root.glob(LEDGER_FILES)}
    whole |= {*plain_files(root, open_store(root)[1])}
    for file in _files(root):
        if file not in whole:
            file.unlink()


def _files(root: Path) -> Iterator[Path]:
    return (file for file in root.rglob("*") if file.is_file())


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
