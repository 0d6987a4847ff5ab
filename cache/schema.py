"""How targets lie in zarr v3 groups, and when a chunk is the one that is wanted.

The root holds what is known of each sample (columns); each group below it holds the targets of one
kind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import MemoryStore

FORMAT = 3
"""Version of the layout; a reader refuses another."""
ATTRIBUTE = "target_cache"
"""Attribute of the root (format, samples, columns) and of groups (`group_files`)."""
JOURNAL = "index/journal.jsonl"
"""Of a group that is not finished: its records so far."""
VALID = "valid"
"""The array of a group that says which samples have targets."""
PLAIN_GROUP = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
"""Metadata of the folders between the root and its groups."""


@dataclass(frozen=True)
class Field:
    """One array of targets: [samples, views, *shape]."""

    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    """Names of the axes after sample and view."""
    units: str = "1"
    description: str = ""

    @property
    def fill(self) -> float | int:
        """The value of the unused end of the last block: NaN where the type has it."""
        return float("nan") if np.dtype(self.dtype).kind == "f" else 0


@dataclass(frozen=True, eq=False)
class Column:
    """What is known of each sample beforehand, [samples, …], stored at the root.

    An axis called view, which must be the second, runs over the views.
    """

    values: np.ndarray
    dims: tuple[str, ...]
    units: str = "1"
    description: str = ""

    @property
    def by_view(self) -> bool:
        return self.dims[1:2] == ("view",)

    @property
    def is_text(self) -> bool:
        return self.values.dtype.kind in "OUT"


Columns = Mapping[str, Column]


class ChunkKey(NamedTuple):
    """One view of one block of samples: the unit that is computed, written and kept."""

    block: int
    view: int

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> ChunkKey:
        """Raises ValueError where the line names none: file names are made of the numbers."""
        numbers = line.get("block"), line.get("view")
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("no block and view")
        return cls(*numbers)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ChunkRecord:
    """One chunk key is written.

    crc: of its chunk of every field, eight hex digits. digest: of everything that it was made from
    (`chunk_digests`). facts: the caller's, as JSON. kept: from an earlier finished group, not
    computed since (only a journal has that).
    """

    key: ChunkKey
    crc: dict[str, str]
    digest: str
    facts: dict[str, Any] = field(default_factory=dict)
    kept: bool = False

    def as_json(self) -> dict[str, Any]:
        block, view = self.key
        plain = {"block": block, "view": view, "key": self.digest, "crc": self.crc}
        more = {"facts": self.facts, "kept": self.kept}
        return plain | {name: value for name, value in more.items() if value}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> ChunkRecord:
        """Raises ValueError where the line is no record."""
        crc, digest, facts = line.get("crc"), line.get("key"), line.get("facts", {})
        if not (isinstance(crc, dict) and isinstance(digest, str) and isinstance(facts, dict)):
            raise ValueError("no record of a chunk")
        return cls(ChunkKey.from_json(line), crc, digest, facts, bool(line.get("kept")))


@dataclass(frozen=True)
class Schema:
    """Samples, views, samples per block, and the fields of a group by name."""

    samples: int
    views: int
    block: int
    fields: dict[str, Field]

    @property
    def blocks(self) -> int:
        return -(-self.samples // self.block)

    def rows(self, block: int) -> slice:
        """The samples of a block."""
        return slice(block * self.block, min((block + 1) * self.block, self.samples))

    def chunk_keys(self) -> Iterator[ChunkKey]:
        """Every (block, view), in order."""
        return (ChunkKey(b, v) for b in range(self.blocks) for v in range(self.views))

    def chunk_name(self, name: str, block: int, view: int) -> str:
        """File name of a chunk in the folder of its field."""
        return ".".join(["c", str(block), str(view), *["0"] * len(self.fields[name].shape)])

    def chunk_file(self, folder: Path, name: str, block: int, view: int) -> Path:
        """Where the chunk of a field lies that holds one view of one block; folder: the group's."""
        return folder / name / self.chunk_name(name, block, view)

    def chunk_bytes(self, name: str) -> int:
        """Bytes of a chunk without its CRC; chunks at the edge are as large as the others."""
        one = self.fields[name]
        return int(np.prod((self.block, *one.shape))) * np.dtype(one.dtype).itemsize

    def chunk_files(self, folder: Path, record: ChunkRecord) -> Iterator[tuple[Path, int, str]]:
        """Of each field the chunk file of a record, its bytes without the CRC, and the CRC."""
        for name in self.fields:
            file = self.chunk_file(folder, name, *record.key)
            yield file, self.chunk_bytes(name), record.crc.get(name, "")

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Schema:
        """Raises ValueError where a field's name is not that of a folder; KeyError, TypeError."""
        for name in line["fields"]:
            if name in ("", "..") or Path(name).name != name:
                raise ValueError(f"{name!r} is no name of a field")
        fields = {
            name: Field(**{**one, "shape": tuple(one["shape"]), "dims": tuple(one["dims"])})
            for name, one in line["fields"].items()
        }
        return cls(line["samples"], line["views"], line["block"], fields)


def chunk_digests(
    schema: Schema,
    columns: Columns,
    fingerprint: Mapping[str, Any],
    depends: Sequence[str],
    valid: np.ndarray,
) -> dict[ChunkKey, str]:
    """SHA-256 of everything that a chunk is made from, by chunk key.

    That is the fingerprint, the types of the fields, and of the block's samples the rows of each
    column in `depends` and of `valid`, bool [N]. Keys whose view a column lacks are left out.
    """
    types = {name: [one.dtype, list(one.shape)] for name, one in schema.fields.items()}
    fixed = json.dumps([fingerprint, types, sorted(depends)], sort_keys=True).encode()
    by_view = [columns[name] for name in sorted(depends) if columns[name].by_view]
    by_sample = [columns[name] for name in sorted(depends) if not columns[name].by_view]
    views = min([schema.views, *(column.values.shape[1] for column in by_view)])
    found = {}
    for block in range(schema.blocks):
        rows = schema.rows(block)
        common = hashlib.sha256(fixed + str(rows).encode() + valid[rows].tobytes())
        for column in by_sample:
            common.update(_content(column, column.values[rows]))
        for view in range(views):
            digest = common.copy()
            digest.update(str(view).encode())
            for column in by_view:
                digest.update(_content(column, column.values[rows, view]))
            found[ChunkKey(block, view)] = digest.hexdigest()
    return found


def _content(column: Column, values: np.ndarray) -> bytes:
    if column.is_text:
        return json.dumps(values.tolist()).encode()
    head = f"{values.dtype.str}{values.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(values).tobytes()).digest()


def root_files(columns: Columns, samples: int) -> dict[str, bytes]:
    """Every file of the root but its seal, by path below it."""
    about = {"samples": samples, "columns": list(columns)}
    store, group = _new_group("What is known of samples, and targets of them (deskpro)", about)
    for name, column in columns.items():
        _put(group, name, column)
    return _bytes(store)


def group_files(
    schema: Schema, fingerprint: Mapping[str, Any], depends: Sequence[str], valid: np.ndarray
) -> dict[str, bytes]:
    """Every file of a group but its chunks of targets and its seal, by path below it."""
    made_from = {"fingerprint": dict(fingerprint), "depends": list(depends)}
    store, group = _new_group("Targets of samples and views", asdict(schema) | made_from)
    for name, one in schema.fields.items():
        _create_array(
            group,
            name,
            one,
            dims=("sample", "view", *one.dims),
            shape=(schema.samples, schema.views, *one.shape),
            chunks=(schema.block, 1, *one.shape),
            dtype=one.dtype,
            fill_value=one.fill,
            serializer=BytesCodec(endian="little"),
        )
    _put(group, VALID, Column(valid, ("sample",), "1", "whether the sample has targets"))
    return _bytes(store)


def _bytes(store: dict[str, Any]) -> dict[str, bytes]:
    """The files of a store in memory, which gives them away: columns may fill half of it."""
    return {path: store.pop(path).to_bytes() for path in [*store]}


def _new_group(description: str, about: Mapping[str, Any]) -> tuple[dict[str, Any], zarr.Group]:
    """A group in memory, and its files."""
    store: dict[str, Any] = {}
    attributes = {"description": description, ATTRIBUTE: {"format": FORMAT, **about}}
    return store, zarr.create_group(MemoryStore(store), zarr_format=3, attributes=attributes)


def _put(group: zarr.Group, name: str, column: Column) -> None:
    """An array of one chunk."""
    array = _create_array(
        group,
        name,
        column,
        dims=column.dims,
        shape=column.values.shape,
        chunks=tuple(max(1, size) for size in column.values.shape),
        dtype="str" if column.is_text else column.values.dtype,
    )
    array[...] = column.values.astype(object) if column.is_text else column.values


def _create_array(
    group: zarr.Group, name: str, about: Field | Column, *, dims: tuple[str, ...], **layout: Any
) -> zarr.Array[Any]:
    """An array whose chunks lie in one folder, as they are: fp16 logits don't compress, and raw
    chunks can be mapped."""
    return group.create_array(
        name,
        compressors=[Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=dims,
        attributes={"units": about.units, "description": about.description},
        config={"write_empty_chunks": True},
        **layout,
    )
