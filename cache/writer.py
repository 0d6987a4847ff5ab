"""Write a group of targets in place, block by block; it is finished when it is sealed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np

from deskpro.cache.errors import CacheError
from deskpro.cache.files import ASIDE, crc32c, sync, write_bytes
from deskpro.cache.fingerprint import Difference, FieldDifference, describe, differences
from deskpro.cache.fingerprint import sample_differences as by_sample
from deskpro.cache.journal import Journal
from deskpro.cache.lock import hold
from deskpro.cache.schema import (
    CRC_BYTES,
    INDEX,
    JOURNAL,
    METADATA,
    PLAIN_GROUP,
    RESERVED,
    ChunkKey,
    Columns,
    Record,
    Schema,
    chunk_digests,
    damaged,
    group_files,
    hashes,
    index_bytes,
    read_index,
    root_files,
)
from deskpro.cache.store import (
    Group,
    Records,
    TargetStore,
    group_folders,
    is_group,
    node_type,
    read_attributes,
    read_journal,
)


class GroupWriter:
    """A group of targets in the making.

    A block — its samples, all fields, the views that are missing — is a transaction: its chunk
    files are written and synced, then the journal records them. A chunk whose record has the
    digest that is wanted is kept, whichever command computed it; any other is missing. So a changed
    image costs its block, more views cost only themselves, and an interrupted run is resumed.

    Nothing is written before the first `write` or `seal`: until then a finished group stays so.
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
        deep: bool = False,
    ) -> None:
        """Find out what is missing, and keep other processes from writing to the store.

        Args:
            root: the store.
            group: path of the group below it, as "teachers/NAME/logits".
            schema: of the group.
            columns: all columns of the root. One over views may have fewer than are stored.
            fingerprint: what all chunks are made from, as JSON.
            depends: names of the columns whose rows a chunk is made from.
            valid: bool [N], which samples have targets; all unless given.
            replace: chunks of the store that were made otherwise may be lost.
            reuse: keep chunks of a finished group.
            deep: read each chunk that is kept; a damaged one is missing.

        Raises:
            CacheError: another process writes to the store; chunks would be lost, with what differs
                in its `differences`; the store is damaged or of another format.
        """
        self.root, self.group, self.schema = root, group, schema
        self._folder = root / group
        self._fingerprint, self._depends = dict(fingerprint), list(depends)
        self._valid = np.ones(schema.samples, bool) if valid is None else np.asarray(valid, bool)
        self._journal = Journal(self._folder / JOURNAL)
        self._lock = ExitStack()
        self._lock.enter_context(hold(root, f"writing {group}"))
        try:
            old_format = root.with_name(root.name + ".partial")
            if old_format.exists():
                raise CacheError(
                    f"{old_format}: an unfinished cache of an earlier format. Delete it (rm -r "
                    f"{old_format}), then type the same command"
                )
            stored = _stored_columns(root, damage=not replace)
            self._columns = _widest(columns, stored, _most_views(root, self._folder))
            self._plan(stored, replace=replace, reuse=reuse, deep=deep)
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
        views = self.missing.get(block, [])
        self._require_fit(block, targets, len(views))
        self._begin()
        keys = [ChunkKey(block, view) for view in views]
        # Before a chunk is overwritten its record goes: what has a record is always whole.
        self._journal.append(
            {"block": key.block, "view": key.view} for key in keys if self._records.pop(key, None)
        )
        records = []
        for i, key in enumerate(keys):
            crc = {
                name: _write_chunk(
                    self.schema.chunk_file(self._folder, name, *key),
                    _padded(self.schema, name, targets[name][:, i]),
                )
                for name in self.schema.fields
            }
            about = dict((facts or {}).get(key.view, {}))
            records.append(Record(key, crc, self._wanted[key], about))
        for name in self.schema.fields:
            sync(self._folder / name)
        self._journal.append(record.as_json() for record in records)
        self._records |= {record.key: record for record in records}

    def seal(self) -> None:
        """Finish the group, when every block is written.

        Raises:
            CacheError: blocks are missing, or a chunk file is gone or not that of its record. The
                same command computes it again.
        """
        if not self.sealed:
            self._begin()
            keys = [*self.schema.chunk_keys()]
            missing = sorted({key.block for key in keys if not self._is_current(key)})
            if missing:
                raise CacheError(f"{self._folder}: blocks {missing} are not written, cannot seal")
            self._require_stored(keys)
            write_bytes(
                self._folder / INDEX, index_bytes(self._files, [self._records[k] for k in keys])
            )
            self.sealed = True
        self._journal.remove()
        self.close()

    def close(self) -> None:
        """Let another writer go on; what is written stays."""
        self._lock.close()

    def _is_current(self, key: ChunkKey) -> bool:
        record = self._records.get(key)
        return record is not None and record.digest == self._wanted[key]

    def _plan(self, stored: Columns | None, *, replace: bool, reuse: bool, deep: bool) -> None:
        """Decide which chunks are kept; CacheError where others would be lost unasked."""
        self._wanted = chunk_digests(
            self.schema, self._columns, self._fingerprint, self._depends, self._valid
        )
        if len(self._wanted) < self.schema.blocks * self.schema.views:
            raise CacheError(f"{self._folder}: a column has fewer views than {self.schema.views}")
        records, index = _own_records(self._folder, damage=not replace)
        if not replace:
            lost = any(r.digest != self._wanted.get(key) for key, r in records.items())
            if lost:
                self._refuse(self._folder, stored, of_group=True)
            for folder in group_folders(self.root) if self.root.exists() else ():
                if folder != self._folder and _loses(folder, self._columns, self.schema.samples):
                    self._refuse(folder, stored, of_group=False)
        if index is not None:
            # A journal that a crash left beside a seal has nothing to add.
            records = {key: changed(record, kept=True) for key, record in records.items()}
        self._records = _whole(self._folder, self.schema, records, deep=deep)
        self.missing: dict[int, list[int]] = {}
        """By block the views that are missing, as this writer was opened."""
        for key in self.schema.chunk_keys():
            if not self._is_current(key) or (self._records[key].kept and not reuse):
                self.missing.setdefault(key.block, []).append(key.view)
        total = self.schema.blocks * self.schema.views
        self.there = total - sum(map(len, self.missing.values()))
        """How many (block, view) were there when this writer was opened."""
        self._files = group_files(self.schema, self._fingerprint, self._depends, self._valid)
        self._root_files = root_files(self._columns, self.schema.samples)
        self._begun = False
        self.sealed = (
            not self.missing
            and index is not None
            and _same_files(self._folder, index, self._files)
            and _same_files(self.root, _index_or_none(self.root), self._root_files)
        )
        """Whether the group is finished as it is wanted: there is nothing to do."""

    def _refuse(self, folder: Path, stored: Columns | None, *, of_group: bool) -> None:
        found: list[Difference] = []
        try:
            group = Group.load(folder)
        except CacheError:
            group = None
        if group is not None and of_group:
            found += differences(group.fingerprint, self._fingerprint)
            old, new = group.schema.as_json(), self.schema.as_json()
            found += [FieldDifference(name, old[name], new[name])
                      for name in ("samples", "views", "block") if old[name] != new[name]]  # fmt: skip
            old, new = old["fields"], new["fields"]
            found += [
                FieldDifference(f"the array {name}", old.get(name), new.get(name))
                for name in sorted({*old, *new}) if old.get(name) != new.get(name)
            ]  # fmt: skip
        if stored is not None and "sample_id" in stored and "sample_id" in self._columns:
            before = {name: column.values for name, column in stored.items()}
            now = {name: column.values for name, column in self._columns.items()}
            found += by_sample(before, now)
        lines = describe(found) or ["its chunks were made from other values"]
        raise CacheError(
            f"{folder}: made from other settings or images: {'; '.join(lines)}. Restore them to "
            "keep it, or type make teacher-cache FORCE=1 to keep only what is the same",
            found,
        )

    def _require_fit(self, block: int, targets: Mapping[str, np.ndarray], views: int) -> None:
        fields, rows = self.schema.fields, self.schema.rows(block)
        if set(targets) != set(fields):
            raise CacheError(
                f"block {block}: fields {', '.join(targets)}, must be {', '.join(fields)}"
            )
        for name, field in fields.items():
            shape, found = (rows.stop - rows.start, views, *field.shape), targets[name]
            if found.shape != shape or found.dtype != np.dtype(field.dtype):
                raise CacheError(
                    f"block {block}: {name} is {found.dtype}{list(found.shape)}, "
                    f"must be {field.dtype}{list(shape)}"
                )

    def _begin(self) -> None:
        """Bring root, folders and the group's own files to what is wanted; once."""
        if self._begun:
            return
        _write_root(self.root, self._root_files)
        for folder in [*self._folder.parents][: len(Path(self.group).parts) - 1]:
            _write_files(folder, {METADATA: PLAIN_GROUP})
        inside = {*self.schema.chunk_keys()}
        kept = [record for key, record in self._records.items() if key in inside]
        # Journal first, then the seal goes: a crash between leaves the finished group.
        self._journal.rewrite(
            record.as_json() | ({"kept": True} if record.kept else {}) for record in kept
        )
        _remove_file(self._folder / INDEX)
        _write_files(self._folder, self._files)
        _remove_unwanted(self._folder, self.schema)
        self._begun = True

    def _require_stored(self, keys: Iterable[ChunkKey]) -> None:
        """Every chunk file has its size, and ends with the CRC of its record."""
        for key in keys:
            for name, crc in self._records[key].crc.items():
                file = self.schema.chunk_file(self._folder, name, *key)
                found = _stored_crc(file, self.schema.chunk_bytes(name))
                if found != crc:
                    self._journal.append([{"block": key.block, "view": key.view}])
                    raise damaged(file, "it is gone, or not the chunk of its record")


def _stored_columns(root: Path, *, damage: bool) -> Columns | None:
    """The columns of a finished root; None where there is none.

    damage: raise for what is damaged; otherwise it counts as not there. Something that is no cache,
    or one of another format, is always refused.
    """
    if not root.exists():
        return None
    index = _index_or_none(root) if not damage else read_index(root)
    if index is None:
        if (root / METADATA).exists():
            try:
                read_attributes(root, None)
            except CacheError as error:
                if damage or not (root / INDEX).exists():
                    raise error
        elif any(not entry.name.startswith(".") for entry in root.iterdir()):
            raise CacheError(f"{root}: not a target cache (it has no {METADATA}). Move it away")
        return None
    try:
        store = TargetStore(root)
        return {name: store.load(name) for name in store.columns}
    except CacheError:
        if damage:
            raise
        return None


def _index_or_none(folder: Path) -> dict[str, Any] | None:
    try:
        return read_index(folder)
    except CacheError:
        return None


def _own_records(folder: Path, *, damage: bool) -> tuple[Records, dict[str, Any] | None]:
    """The records of a group that may be there, and its index if it is finished."""
    index = read_index(folder) if damage else _index_or_none(folder)
    if index is None:
        return read_journal(folder), None
    records = map(Record.from_json, index["chunks"])
    return {record.key: record for record in records}, index


def _most_views(root: Path, own: Path) -> int:
    """Views of the other groups."""
    found = 0
    for folder in group_folders(root) if root.exists() else ():
        if folder != own:
            try:
                found = max(found, read_attributes(folder, _index_or_none(folder))["views"])
            except CacheError:
                continue
    return found


def _widest(columns: Columns, stored: Columns | None, views: int) -> Columns:
    """The columns, with stored views added that others need and that begin with the same."""
    found = dict(columns)
    for name, column in columns.items():
        old = (stored or {}).get(name)
        if old is None or not column.by_view or old.dims != column.dims:
            continue
        width, wider = column.values.shape[1], old.values[:, :views]
        if width < wider.shape[1] and np.array_equal(wider[:, :width], column.values):
            found[name] = changed(column, values=wider)
    return found


def _loses(folder: Path, columns: Columns, samples: int) -> bool:
    """Whether a group has chunks that these columns would outdate."""
    try:
        group = Group.load(folder)
    except CacheError:
        return False
    wanted = group.digests(columns, samples)
    return any(record.digest != wanted.get(key) for key, record in group.records.items())


def _whole(folder: Path, schema: Schema, records: Records, *, deep: bool) -> Records:
    """The records whose chunk files are there in their size; deep: and in every byte."""
    sizes = {name: _sizes(folder / name) for name in schema.fields}
    wanted = {name: schema.chunk_bytes(name) + CRC_BYTES for name in schema.fields}

    def is_whole(key: ChunkKey, record: Record) -> bool:
        for name in schema.fields:
            size = sizes[name].get(schema.chunk_name(name, *key))
            if size != wanted[name] or name not in record.crc:
                return False
            if deep:
                content = schema.chunk_file(folder, name, *key).read_bytes()
                body, stored = content[:-CRC_BYTES], content[-CRC_BYTES:]
                if not crc32c(body) == record.crc[name] == _hex(stored):
                    return False
        return True

    return {key: record for key, record in records.items() if is_whole(key, record)}


def _sizes(folder: Path) -> dict[str, int]:
    """Size by file name; one listing instead of a question per chunk."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries}


def _padded(schema: Schema, name: str, values: np.ndarray) -> np.ndarray:
    """A chunk of the full block, little-endian; the end of the last block has the fill value."""
    field = schema.fields[name]
    chunk = np.full((schema.block, *field.shape), field.fill, np.dtype(field.dtype))
    chunk[: len(values)] = values
    return chunk.astype(chunk.dtype.newbyteorder("<"), copy=False)


def _write_chunk(file: Path, values: np.ndarray) -> str:
    """Write a chunk and its CRC, and return that; a reader's map keeps the earlier file."""
    content = values.tobytes()
    crc = crc32c(content)
    file.unlink(missing_ok=True)
    with file.open("wb") as opened:
        opened.write(content)
        opened.write(int(crc, 16).to_bytes(CRC_BYTES, "little"))
        opened.flush()
        os.fsync(opened.fileno())
    return crc


def _stored_crc(path: Path, size: int) -> str | None:
    """The CRC at the end of a chunk file; None where the file isn't there in its full size."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) != size + CRC_BYTES:
                return None
            file.seek(size)
            return _hex(file.read(CRC_BYTES))
    except FileNotFoundError:
        return None


def _hex(stored: bytes) -> str:
    return f"{int.from_bytes(stored, 'little'):08x}"


def _same_files(folder: Path, index: dict[str, Any] | None, files: Mapping[str, bytes]) -> bool:
    """Whether a seal names these files, and they are there."""
    return (
        index is not None
        and index["files"] == hashes(files)
        and all(_content(folder / name) == content for name, content in files.items())
    )


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _write_root(root: Path, files: Mapping[str, bytes]) -> None:
    """Bring the root's own files to what is wanted; while they change it has no seal."""
    if _same_files(root, _index_or_none(root), files):
        return
    _remove_file(root / INDEX)
    _write_files(root, files)
    columns = {Path(name).parts[0] for name in files}
    for entry in [*os.scandir(root)]:
        if entry.is_dir() and entry.name not in columns | RESERVED:
            path = Path(entry.path)
            if node_type(path) == "array" and not is_group(path):
                shutil.rmtree(path)
    for folder in (root, root / "index"):
        _remove_asides(folder)
    write_bytes(root / INDEX, index_bytes(files))


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write those files that are not there with this content; remove what crashes left."""
    for name, content in files.items():
        if _content(folder / name) != content:
            write_bytes(folder / name, content)
    for parent in {(folder / name).parent for name in files}:
        _remove_asides(parent)


def _remove_asides(folder: Path) -> None:
    for path in folder.glob(ASIDE):
        path.unlink()


def _remove_file(path: Path) -> None:
    if path.exists():
        path.unlink()
        sync(path.parent)


def _remove_unwanted(folder: Path, schema: Schema) -> None:
    """Remove arrays and chunks that a smaller schema does not have, and what crashes left."""
    _remove_asides(folder / "index")
    for entry in [*os.scandir(folder)]:
        path = Path(entry.path)
        if entry.is_dir() and entry.name not in RESERVED | {*schema.fields}:
            if node_type(path) == "array":
                shutil.rmtree(path)
    for name in schema.fields:
        names = {schema.chunk_name(name, *key) for key in schema.chunk_keys()}
        for entry in [*os.scandir(folder / name)]:
            if entry.name.startswith("c.") and entry.name not in names:
                Path(entry.path).unlink()
