"""Read targets: any batch of (sample, view) in one call.

`MappedReader` maps the chunk files and copies rows out of them. `ZarrReader` goes through zarr; it
is the plain definition of what the mapped one must return.
"""

from __future__ import annotations

import mmap
import resource
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from deskpro.cache.chunk import open_chunk
from deskpro.cache.errors import damaged
from deskpro.cache.schema import ChunkKey
from deskpro.cache.store import TargetStore

Rows = dict[str, np.ndarray]
_SPARE_FILES = 512
"""Open files left to the rest of the process."""
_READERS = 4
"""Readers that may share the process's open files and maps."""
_MAPS = 60_000
"""Maps of all readers together; Linux allows 65,530 for a process."""


class TargetReader(ABC):
    """A group of a store.

    Attributes:
        schema: as stored; `fields` are those that are read.
        fingerprint: what all targets were made from.
        records: by chunk key, of the chunks that can be read.
        valid: bool [N], whether the sample has targets.
        columns: names of the root's columns.
        sealed: whether it is finished.
    """

    def __init__(
        self,
        root: Path,
        group: str,
        fields: Sequence[str] | None = None,
        *,
        unfinished: bool = False,
    ) -> None:
        """Open a group; fields: those to read, or all.

        unfinished: one in the making, too; the chunks that have a record can be read.

        Raises:
            CacheError: it is not there, not finished, damaged, or made from other columns.
        """
        store = TargetStore(root)
        found = store.open(group, partly=unfinished)
        self.root, self.group, self.columns = root, group, store.columns
        self.fingerprint, self.valid, self.records = found.fingerprint, found.valid, found.records
        self.sealed = found.sealed
        chosen = found.schema.fields if fields is None else fields
        self.schema = replace(found.schema, fields={n: found.schema.fields[n] for n in chosen})

    @abstractmethod
    def chunk(self, name: str, block: int, view: int) -> np.ndarray:
        """One view of a block's samples, [rows, *shape]; not to be written to."""

    @abstractmethod
    def _read(self, name: str, pairs: Sequence[tuple[int, int]], out: np.ndarray) -> None:
        """Copy a field's targets of (sample, view) into `out`."""

    def column(self, name: str) -> np.ndarray:
        """What is known of each sample beforehand, [N, …], whole."""
        return TargetStore(self.root).column(name)

    def read(self, samples: Sequence[int], views: Sequence[int], out: Rows | None = None) -> Rows:
        """The targets of pairs (samples[i], views[i]): by field [len(samples), *shape].

        They are written into the arrays `out`, which are returned, or into new memory.

        Raises:
            IndexError: the cache does not have a sample or view.
            CacheError: a chunk is damaged.
        """
        schema = self.schema
        limits = (("sample", samples, schema.samples), ("view", views, schema.views))
        for what, indices, count in limits:
            if len(indices) and not (0 <= min(indices) and max(indices) < count):
                raise IndexError(f"{what}s must be in 0..{count - 1}, found {list(indices)}")
        pairs = [*zip(samples, views, strict=True)]
        if out is None:
            out = {n: np.empty((len(pairs), *f.shape), f.dtype) for n, f in schema.fields.items()}
        for name in schema.fields:
            self._read(name, pairs, out[name])
        return out

    def _file(self, name: str, block: int, view: int) -> Path:
        return self.schema.chunk_file(self.root / self.group, name, block, view)


def read_all(reader: TargetReader, name: str) -> np.ndarray:
    """A whole field, [N, V, *shape], in memory."""
    schema, field = reader.schema, reader.schema.fields[name]
    found = np.empty((schema.samples, schema.views, *field.shape), field.dtype)
    for block, view in schema.chunk_keys():
        found[schema.rows(block), view] = reader.chunk(name, block, view)
    return found


def all_bytes(reader: TargetReader) -> int:
    """The size of all targets in memory."""
    schema = reader.schema
    chunks = schema.samples * schema.views / schema.block
    return round(chunks * sum(schema.chunk_bytes(name) for name in schema.fields))


class ZarrReader(TargetReader):
    """Reads through zarr, which checks each chunk's CRC each time."""

    def chunk(self, name: str, block: int, view: int) -> np.ndarray:
        return self._get(name, block, view, self.schema.rows(block))

    def _read(self, name: str, pairs: Sequence[tuple[int, int]], out: np.ndarray) -> None:
        for i, (sample, view) in enumerate(pairs):
            out[i] = self._get(name, sample // self.schema.block, view, sample)

    def _get(self, name: str, block: int, view: int, rows: int | slice) -> np.ndarray:
        file = self._file(name, block, view)
        if not file.is_file():  # zarr would give the fill value for it
            raise damaged(file, "the file is gone")
        try:
            array = zarr.open_array(self.root / self.group / name, mode="r")
            return np.asarray(array[rows, view])
        except ValueError as error:  # zarr raises it for a checksum that differs
            raise damaged(file, str(error)) from None


class MappedReader(TargetReader):
    """Maps chunk files as they are first needed and checks the CRC of each then, once.

    Each file must have its size, and the CRC that its record names. Pickles without its maps, so
    that each process opens its own; a forked process may go on with its parent's, which nobody
    writes to.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._checked: set[tuple[str, int, int]] = set()
        self._maps: OrderedDict[tuple[str, int, int], np.ndarray] = OrderedDict()
        self._most = _most_maps(len(self.records) * len(self.schema.fields))

    def chunk(self, name: str, block: int, view: int) -> np.ndarray:
        rows = self.schema.rows(block)
        return self._chunk((name, block, view))[: rows.stop - rows.start]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": OrderedDict(), "_checked": set()}

    def _read(self, name: str, pairs: Sequence[tuple[int, int]], out: np.ndarray) -> None:
        size = self.schema.block
        for i, (sample, view) in enumerate(pairs):
            out[i] = self._chunk((name, sample // size, view))[sample % size]

    def _chunk(self, key: tuple[str, int, int]) -> np.ndarray:
        found = self._maps.get(key)
        if found is None:
            found = self._maps[key] = self._map(*key)
            if len(self._maps) > self._most:
                self._maps.popitem(last=False)
        return found

    def _map(self, name: str, block: int, view: int) -> np.ndarray:
        key, field = (name, block, view), self.schema.fields[name]
        record, size = self.records.get(ChunkKey(block, view)), self.schema.chunk_bytes(name)
        crc = record.crc[name] if record else ""
        with open_chunk(self._file(*key), size, crc, deep=key not in self._checked) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._checked.add(key)
        mapped.madvise(mmap.MADV_RANDOM)
        values = np.frombuffer(mapped, np.uint8, size).view(field.dtype)
        return values.reshape(self.schema.block, *field.shape)


def _most_maps(chunks: int) -> int:
    """How many of its chunks a reader may map at a time; each takes an open file (Python < 3.13).

    The process's limit of open files, usually 1024, is raised as far as needed and allowed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(_MAPS, _READERS * chunks) + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else max(soft, min(hard, wanted))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    files = _MAPS if soft == resource.RLIM_INFINITY else min(_MAPS, soft - _SPARE_FILES)
    return max(32, files // _READERS)
