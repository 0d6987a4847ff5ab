"""Read targets: any batch of (sample, view) in one call.

`MappedReader` is for training: it maps the chunk files and copies rows out of them. `ZarrReader`
goes through zarr and is the plain definition of what the mapped one must return.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np
import zarr

from cache.errors import CacheError
from cache.schema import CRC_BYTES, Schema, get_array, open_store, read_schema


class TargetReader(Protocol):
    """What both readers offer."""

    schema: Schema
    fingerprint: dict[str, Any]

    def per_sample(self, name: str) -> np.ndarray:
        """An array [N, …] that was written with the store, whole."""
        ...

    def read(self, samples: Sequence[int], views: Sequence[int]) -> dict[str, np.ndarray]:
        """The targets of pairs (samples[i], views[i]): by field [len(samples), *shape], own memory.

        Raises IndexError for a sample or view that the cache doesn't have, CacheError for a chunk
        that is damaged.
        """
        ...


def open_reader(path: Path) -> TargetReader:
    """The fastest reader that the store's layout allows."""
    try:
        return MappedReader(path)
    except UnmappableError:
        return ZarrReader(path)


class UnmappableError(CacheError):
    """The store is readable by zarr, but its chunks aren't raw arrays."""


class ZarrReader:
    """Reads through zarr, which checks each chunk's CRC each time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._group, attributes = open_store(path)
        if not attributes.get("sealed"):
            raise CacheError(f"{path}: not finished. Go on with: make teacher-cache")
        self.fingerprint: dict[str, Any] = attributes["fingerprint"]
        self.schema = read_schema(self._group, attributes)

    def per_sample(self, name: str) -> np.ndarray:
        array = get_array(self._group, name)
        chunk = self.path.joinpath(name, "c", *["0"] * array.ndim)  # written in one piece
        try:
            if not chunk.is_file():  # zarr would give the fill value for it
                raise ValueError("the file is gone")
            return np.asarray(array[...])
        except (ValueError, OSError) as error:
            raise _damaged(chunk, str(error)) from None

    def read(self, samples: Sequence[int], views: Sequence[int]) -> dict[str, np.ndarray]:
        _require_inside(self.schema, samples, views)
        rows: dict[str, np.ndarray] = {}
        for name, field in self.schema.fields.items():
            array = get_array(self._group, name)
            rows[name] = np.empty((len(samples), *field.shape), field.dtype)
            for i, (sample, view) in enumerate(zip(samples, views, strict=True)):
                block = sample // self.schema.block
                file = self.schema.chunk_file(self.path, name, block, view)
                try:
                    if not file.is_file():  # zarr would give the fill value for it
                        raise ValueError("the file is gone")
                    rows[name][i] = array[sample, view]
                except (ValueError, OSError) as error:
                    raise _damaged(file, str(error)) from None
        return rows


class MappedReader:
    """Maps chunk files as they are first needed and checks the CRC of each then, once.

    Before anything is mapped, the arrays' codecs, types and chunk shapes and the size of every file
    are those that make a chunk file a plain array. Pickles without its maps, so that each process
    opens its own.
    """

    def __init__(self, path: Path) -> None:
        plain = ZarrReader(path)
        self.path, self.schema, self.fingerprint = path, plain.schema, plain.fingerprint
        for name, field in self.schema.fields.items():
            _require_raw(get_array(plain._group, name), name, (self.schema.block, 1, *field.shape))
        self._maps: dict[tuple[str, int, int], np.ndarray] = {}

    def per_sample(self, name: str) -> np.ndarray:
        return ZarrReader(self.path).per_sample(name)

    def read(self, samples: Sequence[int], views: Sequence[int]) -> dict[str, np.ndarray]:
        _require_inside(self.schema, samples, views)
        size = self.schema.block
        rows: dict[str, np.ndarray] = {}
        for name, field in self.schema.fields.items():
            rows[name] = np.empty((len(samples), *field.shape), field.dtype)
            for i, (sample, view) in enumerate(zip(samples, views, strict=True)):
                rows[name][i] = self._chunk(name, sample // size, view)[sample % size]
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def _chunk(self, name: str, block: int, view: int) -> np.ndarray:
        key = (name, int(block), int(view))
        if key not in self._maps:
            self._maps[key] = self._map(*key)
        return self._maps[key]

    def _map(self, name: str, block: int, view: int) -> np.ndarray:
        path = self.schema.chunk_file(self.path, name, block, view)
        size = self.schema.chunk_bytes(name)
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise _damaged(path, str(error)) from None
        if len(mapped) != size + CRC_BYTES:
            raise _damaged(path, f"{len(mapped)} bytes, must be {size + CRC_BYTES}")
        content = np.frombuffer(mapped, np.uint8)
        if google_crc32c.value(content[:size]) != int.from_bytes(mapped[size:], "little"):
            raise _damaged(path, "its checksum doesn't fit")
        mapped.madvise(mmap.MADV_RANDOM)
        field = self.schema.fields[name]
        return content[:size].view(field.dtype).reshape(self.schema.block, *field.shape)


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


def _damaged(path: Path, why: str) -> CacheError:
    return CacheError(
        f"{path}: damaged chunk ({why}). Make the cache anew: make teacher-cache FORCE=1"
    )
