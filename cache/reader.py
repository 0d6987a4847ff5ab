"""Read targets: any batch of (sample, view) in one call.

`MappedReader` is for training: it maps the chunk files and copies rows out of them. `ZarrReader`
goes through zarr and is the plain definition of what the mapped one must return.
"""

from __future__ import annotations

import mmap
import resource
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np
import zarr

from deskpro.cache import ledger as ledgers
from deskpro.cache.errors import CacheError
from deskpro.cache.ledger import Entry, Place, from_attributes
from deskpro.cache.schema import (
    CRC_BYTES,
    Schema,
    damaged,
    get_array,
    is_sealed,
    open_store,
    read_column,
    read_schema,
)

Rows = dict[str, np.ndarray]


class TargetReader(Protocol):
    """What both readers offer."""

    path: Path
    schema: Schema
    """As stored; `fields` are those that are read."""
    fingerprint: dict[str, Any]
    ledger: dict[Place, Entry]
    columns: list[str]

    def column(self, name: str) -> np.ndarray:
        """What was known of each sample beforehand, [N, …], whole."""
        ...

    def read(self, samples: Sequence[int], views: Sequence[int], out: Rows | None = None) -> Rows:
        """The targets of pairs (samples[i], views[i]): by field [len(samples), *shape].

        They are written into the arrays `out`, which are returned, or into new memory. Raises
        IndexError for a sample or view that the cache doesn't have, CacheError for a chunk that is
        damaged.
        """
        ...

    def chunk(self, name: str, block: int, view: int) -> np.ndarray:
        """One view of a block's samples, [rows, *shape]; don't write to it."""
        ...


def open_reader(path: Path, fields: Sequence[str] | None = None) -> TargetReader:
    """The fastest reader that the store's layout allows, of these fields, or all."""
    try:
        return MappedReader(path, fields)
    except UnmappableError:
        return ZarrReader(path, fields)


def read_all(reader: TargetReader, name: str, out: np.ndarray) -> None:
    """Copy a field into `out`, [N, V, *shape], chunk by chunk."""
    for block, view in reader.schema.places():
        out[reader.schema.rows(block), view] = reader.chunk(name, block, view)


def all_bytes(reader: TargetReader) -> int:
    """The size of all targets in memory."""
    schema = reader.schema
    chunks = schema.samples * schema.views / schema.block
    return round(chunks * sum(schema.chunk_bytes(name) for name in schema.fields))


class UnmappableError(CacheError):
    """The store is readable by zarr, but its chunks aren't raw arrays."""


class ZarrReader:
    """Reads through zarr, which checks each chunk's CRC each time."""

    def __init__(
        self, path: Path, fields: Sequence[str] | None = None, *, unfinished: bool = False
    ) -> None:
        """unfinished: open a store in the making, too; what its ledger lists can be read."""
        self.path = path
        self._group, attributes = open_store(path)
        if not is_sealed(attributes) and not unfinished:
            raise CacheError(f"{path}: not finished. Go on with: make teacher-cache")
        self.fingerprint: dict[str, Any] = attributes["fingerprint"]
        self.columns: list[str] = attributes["columns"]
        self.schema = _only(read_schema(self._group, attributes), fields)
        if is_sealed(attributes):
            self.ledger = from_attributes(attributes)
        else:
            self.ledger = ledgers.read(path, self.schema, attributes["build"])

    def column(self, name: str) -> np.ndarray:
        return read_column(self.path, self._group, name).values

    def read(self, samples: Sequence[int], views: Sequence[int], out: Rows | None = None) -> Rows:
        _require_inside(self.schema, samples, views)
        rows = _buffer(self.schema, len(samples)) if out is None else out
        for name in self.schema.fields:
            array = get_array(self._group, name)
            for i, (sample, view) in enumerate(zip(samples, views, strict=True)):
                rows[name][i] = self._get(array, name, sample // self.schema.block, view, sample)
        return rows

    def chunk(self, name: str, block: int, view: int) -> np.ndarray:
        array = get_array(self._group, name)
        return self._get(array, name, block, view, self.schema.rows(block))

    def _get(
        self, array: zarr.Array, name: str, block: int, view: int, rows: int | slice
    ) -> np.ndarray:
        file = self.schema.chunk_file(self.path, name, block, view)
        try:
            if not file.is_file():  # zarr would give the fill value for it
                raise ValueError("the file is gone")
            return np.asarray(array[rows, view])
        except ValueError as error:  # zarr's word for a checksum that doesn't fit
            raise damaged(file, str(error)) from None


class MappedReader:
    """Maps chunk files as they are first needed and checks the CRC of each then, once.

    Before anything is mapped, the arrays' codecs, types and chunk shapes are those that make a
    chunk file a plain array; each file must have its size, and the CRC that the ledger says.
    Pickles without its maps, so that each process opens its own; a forked process may go on with
    its parent's, which nobody writes to.
    """

    def __init__(
        self, path: Path, fields: Sequence[str] | None = None, *, unfinished: bool = False
    ) -> None:
        """unfinished: open a store in the making, too; what its ledger lists can be read."""
        plain = ZarrReader(path, fields, unfinished=unfinished)
        self.path, self.schema, self.fingerprint = path, plain.schema, plain.fingerprint
        self.columns, self.ledger = plain.columns, plain.ledger
        for name, field in self.schema.fields.items():
            _require_raw(get_array(plain._group, name), name, (self.schema.block, 1, *field.shape))
        self._checked: set[tuple[str, int, int]] = set()
        self._maps: OrderedDict[tuple[str, int, int], np.ndarray] = OrderedDict()
        self._most = _most_maps(len(self.ledger) * len(self.schema.fields))

    def column(self, name: str) -> np.ndarray:
        return ZarrReader(self.path, unfinished=True).column(name)

    def read(self, samples: Sequence[int], views: Sequence[int], out: Rows | None = None) -> Rows:
        _require_inside(self.schema, samples, views)
        rows = _buffer(self.schema, len(samples)) if out is None else out
        size, pairs = self.schema.block, [*zip(samples, views, strict=True)]
        for name in self.schema.fields:
            target = rows[name]
            for i, (sample, view) in enumerate(pairs):
                target[i] = self._chunk((name, sample // size, view))[sample % size]
        return rows

    def chunk(self, name: str, block: int, view: int) -> np.ndarray:
        rows = self.schema.rows(block)
        return self._chunk((name, block, view))[: rows.stop - rows.start]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": OrderedDict(), "_checked": set()}

    def _chunk(self, key: tuple[str, int, int]) -> np.ndarray:
        found = self._maps.get(key)
        if found is None:
            found = self._maps[key] = self._map(*key)
            if len(self._maps) > self._most:
                self._maps.popitem(last=False)
        return found

    def _map(self, name: str, block: int, view: int) -> np.ndarray:
        path = self.schema.chunk_file(self.path, name, block, view)
        size = self.schema.chunk_bytes(name)
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise damaged(path, "the file is gone") from None
        except ValueError as error:  # an empty file can't be mapped
            raise damaged(path, str(error)) from None
        if len(mapped) != size + CRC_BYTES:
            raise damaged(path, f"{len(mapped)} bytes, must be {size + CRC_BYTES}")
        content = np.frombuffer(mapped, np.uint8)
        stored = f"{int.from_bytes(mapped[size:], 'little'):08x}"
        if (name, block, view) not in self._checked:
            if stored != f"{google_crc32c.value(content[:size]):08x}":
                raise damaged(path, "its checksum doesn't fit")
            self._checked.add((name, block, view))
        entry = self.ledger.get((block, view))
        if entry is None or entry.crc[name] != stored:
            raise damaged(path, "it isn't the chunk that the ledger speaks of")
        mapped.madvise(mmap.MADV_RANDOM)
        field = self.schema.fields[name]
        return content[:size].view(field.dtype).reshape(self.schema.block, *field.shape)


def _only(schema: Schema, fields: Sequence[str] | None) -> Schema:
    if fields is None:
        return schema
    chosen = {name: schema.fields[name] for name in fields}
    return Schema(schema.samples, schema.views, schema.block, chosen)


def _buffer(schema: Schema, rows: int) -> Rows:
    return {name: np.empty((rows, *f.shape), f.dtype) for name, f in schema.fields.items()}


def _most_maps(wanted: int) -> int:
    """How many chunks may be mapped at a time; each holds an open file until Python 3.13.

    The process's limit of open files is raised as far as its own hard limit allows: the usual soft
    limit, 1024, would be passed by a store of 500 (block, view).
    """
    spare = 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted + spare:
        soft = wanted + spare if hard == resource.RLIM_INFINITY else min(hard, wanted + spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(64, soft - spare)


def _require_inside(schema: Schema, samples: Sequence[int], views: Sequence[int]) -> None:
    for name, indices, count in (
        ("sample", samples, schema.samples),
        ("view", views, schema.views),
    ):
        if len(indices) and not (0 <= min(indices) and max(indices) < count):
            raise IndexError(f"{name}s must be in 0..{count - 1}, found {list(indices)}")


def _require_raw(array: zarr.Array, name: str, chunks: tuple[int, ...]) -> None:
    codecs = [codec.to_dict() for codec in array.metadata.codecs]  # type: ignore[union-attr]
    raw = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    single = [{"name": "bytes"}, {"name": "crc32c"}]  # one byte has no order
    if codecs not in (raw, single) or array.chunks != chunks:
        raise UnmappableError(f"{name}: chunks {array.chunks} of {codecs} can't be mapped")
