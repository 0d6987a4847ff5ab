"""Write a group of targets in place, block by block; it is finished when it is sealed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

import numpy as np

from deskpro.cache.chunk import check_chunk, write_chunk
from deskpro.cache.errors import REBUILD, CacheError, DamagedError, UnfinishedError
from deskpro.cache.files import sync
from deskpro.cache.fingerprint import differences, sample_differences
from deskpro.cache.journal import Journal
from deskpro.cache.lock import hold
from deskpro.cache.schema import (
    JOURNAL,
    PLAIN_GROUP,
    ChunkKey,
    ChunkRecord,
    Column,
    Columns,
    Schema,
    chunk_digests,
    group_files,
    root_files,
)
from deskpro.cache.sealed import METADATA, is_sealed_with, read_seal, seal, unseal, write_files
from deskpro.cache.store import (
    ChunkRecords,
    Group,
    TargetStore,
    group_folders,
    is_array,
    is_empty,
    outdated,
    read_records,
)


class GroupWriter:
    """A group of targets in the making.

    A block — its samples, all fields, the views that are missing — is a transaction: its chunk
    files are written and synced, then the journal records them. A chunk whose record has the
    digest that is wanted is kept, whichever command computed it; any other is missing. So a changed
    image costs its block, more views cost only themselves, and an interrupted run is resumed.

    Nothing is written before the first `write` or `seal`: until then a finished group stays so.

    Attributes:
        missing: by block the views to write.
        there: how many (block, view) are kept.
        sealed: whether the group is finished as it is wanted: there is nothing to do.
    """

    def __init__(
        self,
        root: Path,
        group: str,
        schema: Schema,
        columns: Columns,
        fingerprint: Mapping[str, Any],
        *,
        depends: Sequence[str],
        valid: np.ndarray | None = None,
        replace: bool = False,
        reuse: bool = True,
    ) -> None:
        """Find out what is missing, and keep other processes from writing to the store.

        Args:
            root: the store.
            group: path of the group below it, as "teachers/NAME/logits". No group lies in another.
            schema: of the group.
            columns: all columns of the root. One over views may have fewer than are stored.
            fingerprint: what all chunks are made from, as JSON.
            depends: names of the columns whose rows a chunk is made from.
            valid: bool [N], which samples have targets; all unless given.
            replace: chunks of the group that were made otherwise may be lost, and each that is
                kept is read, not only those of an unfinished group: a damaged one is missing.
            reuse: keep chunks of a finished group.

        Raises:
            CacheError: another process writes to the store; chunks would be lost, and the message
                says what differs; the store is damaged or of another format.
        """
        self.root, self.group, self.schema = root, group, schema
        self._folder = root / group
        self._fingerprint, self._depends = dict(fingerprint), list(depends)
        self._valid = np.ones(schema.samples, bool) if valid is None else np.asarray(valid, bool)
        self._journal = Journal(self._folder / JOURNAL)
        self._begun = self.sealed = False
        self._lock = ExitStack()
        self._lock.enter_context(hold(root, f"writing {group}"))
        try:
            self._plan(columns, replace=replace, reuse=reuse)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> GroupWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(
        self,
        block: int,
        targets: Mapping[str, np.ndarray],
        facts: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        """Write what a block lacks: for each field an array [rows, len(missing[block]), *shape].

        facts: by view, kept in its record, as JSON.

        Raises:
            CacheError: fields, shapes or types are not the schema's; nothing is written.
        """
        keys = [ChunkKey(block, view) for view in self.missing.get(block, [])]
        _require_fit(self.schema, block, len(keys), targets)
        self._begin()
        # Before a chunk is overwritten its record goes: what has a record is always whole.
        self._journal.append(
            key._asdict() for key in keys if self._records.pop(key, None) is not None
        )
        written = []
        for i, key in enumerate(keys):
            crc = {
                name: write_chunk(
                    self.schema.chunk_file(self._folder, name, *key),
                    _padded(self.schema, name, targets[name][:, i]),
                )
                for name in self.schema.fields
            }
            about = dict((facts or {}).get(key.view, {}))
            written.append(ChunkRecord(key, crc, self._wanted[key], about))
        for name in self.schema.fields:
            sync(self._folder / name)
        self._journal.append(record.as_json() for record in written)
        self._records |= {record.key: record for record in written}

    def seal(self) -> None:
        """Finish the group, when every block is written.

        Raises:
            CacheError: blocks are missing, or a chunk file is gone or not that of its record. The
                same command computes it again.
        """
        if not self.sealed:
            self._begin()
            missing = sorted({key.block for key in self._wanted.keys() - self._current()})
            if missing:
                raise CacheError(f"{self._folder}: blocks {missing} are not written, cannot seal")
            for key in self._wanted:
                try:
                    self._check(self._records[key], deep=False)
                except DamagedError:
                    self._journal.append([key._asdict()])
                    raise
            records = (with_changes(self._records[key], kept=False) for key in self._wanted)
            seal(self._folder, self._files, (record.as_json() for record in records))
            self.sealed = True
        self._journal.remove()
        Journal(self.root / JOURNAL).remove()
        self.close()

    def close(self) -> None:
        """Let another writer go on; what is written stays."""
        self._lock.close()

    def _plan(self, columns: Columns, *, replace: bool, reuse: bool) -> None:
        """Decide which chunks are kept; CacheError where others would be lost unasked."""
        schema, stored = self.schema, _stored_columns(self.root, replace=replace)
        for other in group_folders(self.root) if stored else ():
            if other in self._folder.parents or self._folder in other.parents:
                raise CacheError(f"{self._folder}: {other} is a group, too; they cannot be nested")
        columns = {name: _widened(column, stored.get(name)) for name, column in columns.items()}
        self._root_files = root_files(columns, schema.samples)
        made_from = self._fingerprint, self._depends, self._valid
        self._files = group_files(schema, *made_from)
        self._wanted = chunk_digests(schema, columns, *made_from)
        total = schema.blocks * schema.views
        if len(self._wanted) < total:
            raise CacheError(f"{self._folder}: a column has fewer views than {schema.views}")
        found = read_seal(self._folder, strict=not replace)
        records = read_records(self._folder, found)
        if outdated(records, self._wanted) and not replace:
            raise self._refusal(stored, columns)
        self._records: ChunkRecords = {}
        for key, record in records.items():
            with suppress(DamagedError):
                # A block of an unfinished group may have changed since: no seal was written after.
                self._check(record, deep=replace or found is None)
                self._records[key] = with_changes(record, kept=record.kept or found is not None)
        there = {key for key in self._current() if reuse or not self._records[key].kept}
        self.missing: dict[int, list[int]] = {}
        for key in self._wanted:
            if key not in there:
                self.missing.setdefault(key.block, []).append(key.view)
        self.there = len(there)
        self.sealed = (
            not self.missing
            and is_sealed_with(self._folder, self._files)
            and is_sealed_with(self.root, self._root_files)
        )

    def _current(self) -> set[ChunkKey]:
        """The keys whose chunks are whole and made from what is wanted."""
        return self._records.keys() - outdated(self._records, self._wanted)

    def _check(self, record: ChunkRecord, *, deep: bool) -> None:
        """Raise DamagedError where a chunk file is not that of its record."""
        for file in self.schema.chunk_files(self._folder, record):
            check_chunk(*file, deep=deep)

    def _refusal(self, stored: Columns, columns: Columns) -> CacheError:
        found: list[str] = []
        with suppress(CacheError):
            group = Group.load(self._folder)
            found += differences(group.fingerprint, self._fingerprint)
            found += differences(asdict(group.schema), asdict(self.schema))
        if "sample_id" in stored and "sample_id" in columns:
            before, now = ({n: c.values for n, c in each.items()} for each in (stored, columns))
            found += sample_differences(before, now)
        found = found or ["its chunks were made from other values"]
        return CacheError(
            f"{self._folder}: made from other settings or images: {'; '.join(found)}. Restore them "
            "to keep it, or rebuild it: only what is the same is kept",
            command=REBUILD,
        )

    def _begin(self) -> None:
        """Bring root, folders and the group's own files to what is wanted; once."""
        if self._begun:
            return
        _write_root(self.root, self._root_files)
        for parent in Path(self.group).parents[:-1]:
            write_files(self.root / parent, {METADATA: PLAIN_GROUP})
        # Journal first, then the seal goes: a crash between leaves the finished group.
        records = [record for key, record in self._records.items() if key in self._wanted]
        self._journal.rewrite(record.as_json() for record in records)
        unseal(self._folder)
        # Metadata go first and come last: what has them has the arrays that they describe.
        (self._folder / METADATA).unlink(missing_ok=True)
        arrays = {name: content for name, content in self._files.items() if name != METADATA}
        for files in (arrays, self._files):
            write_files(self._folder, files)
        chunks = {
            f"{name}/{self.schema.chunk_name(name, *key)}"
            for name in self.schema.fields
            for key in self._wanted
        }
        _prune(self._folder, {JOURNAL, *self._files, *chunks})
        for folder in (self.root.parent, *(self.root / p for p in Path(self.group).parents)):
            sync(folder)  # new folders have their names
        self._begun = True


def _stored_columns(root: Path, *, replace: bool) -> Columns:
    """The columns of a store that is there; none where there is none, or it is to be replaced.

    Raises CacheError: it is no cache, of another format, or damaged and not to be replaced.
    """
    old = root.with_name(root.name + ".partial")
    if old.exists():
        raise CacheError(
            f"{old}: an unfinished cache of an earlier format. Delete it (rm -r {old}), then type "
            "the same command"
        )
    if is_empty(root):
        return {}
    try:
        return TargetStore(root).load_columns()
    except UnfinishedError:
        return {}
    except DamagedError:
        if not replace:
            raise
        return {}


def _widened(column: Column, stored: Column | None) -> Column:
    """A column, with the further views of a stored one that begins with the same."""
    width = column.values.shape[1] if column.by_view else 0
    if stored is None or not width or stored.dims != column.dims:
        return column
    same = np.array_equal(stored.values[:, :width], column.values)
    return with_changes(column, values=stored.values) if same else column


def _require_fit(schema: Schema, block: int, views: int, targets: Mapping[str, np.ndarray]) -> None:
    rows = schema.rows(block)
    if set(targets) != set(schema.fields):
        wanted = ", ".join(schema.fields)
        raise CacheError(f"block {block}: fields {', '.join(targets)}, must be {wanted}")
    for name, field in schema.fields.items():
        shape, found = (rows.stop - rows.start, views, *field.shape), targets[name]
        if found.shape != shape or found.dtype != np.dtype(field.dtype):
            raise CacheError(
                f"block {block}: {name} is {found.dtype}{list(found.shape)}, "
                f"must be {field.dtype}{list(shape)}"
            )


def _padded(schema: Schema, name: str, values: np.ndarray) -> bytes:
    """A chunk of the full block, little-endian; the end of the last block has the fill value."""
    field = schema.fields[name]
    dtype = np.dtype(field.dtype).newbyteorder("<")
    chunk = np.full((schema.block, *field.shape), field.fill, dtype)
    chunk[: len(values)] = values
    return chunk.tobytes()


def _write_root(root: Path, files: Mapping[str, bytes]) -> None:
    """Bring the root's own files to what is wanted; while they change it is not finished.

    An empty journal tells so: a root of groups that has neither seal nor journal has lost its seal.
    """
    if is_sealed_with(root, files):
        return
    if (root / METADATA).exists():
        Journal(root / JOURNAL).rewrite([])
    unseal(root)
    write_files(root, files)
    columns = {Path(name).parts[0] for name in files}
    for folder in root.iterdir():
        if folder.name not in columns and is_array(folder):
            shutil.rmtree(folder)
    seal(root, files)
    Journal(root / JOURNAL).remove()


def _prune(folder: Path, names: set[str]) -> None:
    """Remove every file of a folder that is not wanted, and the folders that this empties."""
    wanted = {f"{folder}/{name}" for name in names}
    for parent, _, found in os.walk(folder, topdown=False):
        for name in found:
            if f"{parent}/{name}" not in wanted:
                Path(parent, name).unlink()
        if not os.listdir(parent):  # noqa: PTH208 (quicker)
            Path(parent).rmdir()
