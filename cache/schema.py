"""How targets lie in a zarr v3 group, and what its reader may rely on."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from deskpro.cache.errors import CacheError

FORMAT = 2
"""Version of the layout; a reader refuses another."""
ATTRIBUTE = "target_cache"
"""Group attribute: format, samples, views, block size, shape of each target, names of columns,
fingerprint; a mark of its own while it is unfinished; and, when sealed, the ledger, the CRC of
every other file, and its own."""
CRC_BYTES = 4
"""Every chunk file ends with the CRC-32C of what comes before."""
METADATA = "zarr.json"
LEDGER_FILES = "ledger.*.jsonl"
"""In a store that isn't finished."""
_OWN = re.compile(rb'"crc32c": ?"([0-9a-f]{8})"')
"""Where the group's metadata say their own CRC, counted with zeros in its place."""


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
        """What an unwritten place holds: NaN where the type has it. Presence is never read off."""
        return float("nan") if np.dtype(self.dtype).kind == "f" else 0


@dataclass(frozen=True, eq=False)
class Column:
    """What is known of each sample beforehand, [samples, …], and written with the store.

    Columns are the part of the fingerprint that goes by sample: where a row differs, the targets of
    that sample are others. An axis called view runs over the views.
    """

    values: np.ndarray
    dims: tuple[str, ...]
    units: str = "1"
    description: str = ""

    def of(self, rows: slice, view: int) -> np.ndarray:
        """The values that the targets of these samples' view depend on."""
        return self.values[rows, view] if self.dims[1:2] == ("view",) else self.values[rows]


Columns = dict[str, Column]


@dataclass(frozen=True)
class Schema:
    """Samples, views, samples per block, and the fields by name."""

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

    def places(self) -> Iterator[tuple[int, int]]:
        """Every (block, view), in order."""
        return ((block, view) for block in range(self.blocks) for view in range(self.views))

    def chunk_file(self, root: Path, name: str, block: int, view: int) -> Path:
        """Where zarr puts the chunk of a field that holds one view of one block."""
        tail = ["0"] * len(self.fields[name].shape)
        return root.joinpath(name, "c", str(block), str(view), *tail)

    def chunk_bytes(self, name: str) -> int:
        """Bytes of a chunk without its CRC; chunks at the edge are as large as the others."""
        field = self.fields[name]
        return int(np.prod((self.block, *field.shape))) * np.dtype(field.dtype).itemsize


def create(root: Path, schema: Schema, columns: Columns, fingerprint: Mapping[str, Any]) -> None:
    """A store without targets; its columns are already in."""
    group = zarr.create_group(
        root,
        zarr_format=3,
        attributes={
            "description": "What a teacher says of every view of every sample (deskpro)",
            ATTRIBUTE: {
                "format": FORMAT,
                "samples": schema.samples,
                "views": schema.views,
                "block": schema.block,
                "targets": {name: list(field.shape) for name, field in schema.fields.items()},
                "columns": list(columns),
                "fingerprint": dict(fingerprint),
                "build": uuid.uuid4().hex,
            },
        },
    )
    for name, field in schema.fields.items():
        group.create_array(
            name,
            shape=(schema.samples, schema.views, *field.shape),
            chunks=(schema.block, 1, *field.shape),
            dtype=field.dtype,
            fill_value=field.fill,
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],  # fp16 logits don't compress; raw chunks can be mapped
            dimension_names=("sample", "view", *field.dims),
            attributes={"units": field.units, "description": field.description},
            config={"write_empty_chunks": True},
        )
    for name, column in columns.items():
        text = column.values.dtype.kind in "OUT"
        array = group.create_array(
            name,
            shape=column.values.shape,
            chunks=column.values.shape,
            dtype="str" if text else column.values.dtype,
            compressors=[Crc32cCodec()],
            dimension_names=column.dims,
            attributes={"units": column.units, "description": column.description},
            config={"write_empty_chunks": True},
        )
        array[...] = column.values.astype(object) if text else column.values


def open_store(root: Path) -> tuple[zarr.Group, dict[str, Any]]:
    """The group and its attributes; CacheError where it isn't a cache of this format, or damaged.

    What a sealed store's metadata say of themselves and of each array's is checked here.
    """
    if not root.exists():
        raise CacheError(f"{root}: no target cache here. Make it: make teacher-cache")
    # Before anything is believed: damage must not pass for another format or an unfinished store.
    if _OWN.search(_bytes_of(root / METADATA)):
        _require_own(root)
    try:
        group = zarr.open_group(root, mode="r")
        attributes: dict[str, Any] = dict(group.attrs[ATTRIBUTE])  # type: ignore[arg-type]
        version = attributes["format"]
    except (KeyError, ValueError, OSError, TypeError, AttributeError) as error:
        raise CacheError(f"{root}: not a target cache ({error})") from None
    if version != FORMAT:
        raise CacheError(
            f"{root}: cache format {version}, this program reads {FORMAT}. "
            "Make it anew: make teacher-cache FORCE=1"
        )
    if is_sealed(attributes):
        _require_own(root)
        for name, crc in attributes["files"].items():
            wrong = file_damage(root / name, crc) if name.endswith(METADATA) else None
            if wrong is not None:
                raise wrong
    return group, attributes


def _require_own(root: Path) -> None:
    wrong = own_damage(root)
    if wrong is not None:
        raise wrong


def is_sealed(attributes: Mapping[str, Any]) -> bool:
    return "ledger" in attributes


def read_schema(group: zarr.Group, attributes: Mapping[str, Any]) -> Schema:
    """The schema of a store; CacheError where an array is gone."""
    fields, samples, views = {}, 0, 0
    for name in attributes["targets"]:
        array = get_array(group, name)
        dims = array.metadata.dimension_names or ()  # type: ignore[union-attr]
        fields[name] = Field(
            array.shape[2:],
            str(array.dtype),
            tuple(map(str, dims[2:])),
            *(str(array.attrs.get(key, "")) for key in ("units", "description")),
        )
        samples, views = array.shape[:2]
    return Schema(samples, views, attributes["block"], fields)


def read_columns(root: Path, group: zarr.Group, attributes: Mapping[str, Any]) -> Columns:
    """The columns of a store; CacheError where one is gone or damaged."""
    return {name: read_column(root, group, name) for name in attributes["columns"]}


def read_column(root: Path, group: zarr.Group, name: str) -> Column:
    """One column of a store; CacheError where it is gone or damaged."""
    array = get_array(group, name)
    chunk = root.joinpath(name, "c", *["0"] * array.ndim)  # written in one piece
    try:
        if not chunk.is_file():  # zarr would give the fill value for it
            raise ValueError("the file is gone")
        values = np.asarray(array[...])
    except (ValueError, OSError) as error:
        raise damaged(chunk, str(error)) from None
    dims = array.metadata.dimension_names or ()  # type: ignore[union-attr]
    return Column(
        values,
        tuple(map(str, dims)),
        *(str(array.attrs.get(key, "")) for key in ("units", "description")),
    )


def get_array(group: zarr.Group, name: str) -> zarr.Array:
    """An array of a store; CacheError where it is gone or unreadable."""
    try:
        array = group[name]
    except (KeyError, ValueError, OSError, TypeError) as error:
        raise CacheError(
            f"{group.store_path}: its array {name} is damaged or gone ({error}). "
            "Make the cache anew: make teacher-cache FORCE=1"
        ) from None
    assert isinstance(array, zarr.Array)
    return array


def seal(root: Path, ledger: list[dict[str, Any]]) -> None:
    """Write into the group's metadata the ledger, the CRC of every other file, and their own.

    Chunks of targets end with their CRC, which the ledger repeats; all other files are listed.
    """
    path = root / METADATA
    metadata = json.loads(path.read_text())
    attributes = metadata["attributes"][ATTRIBUTE]
    attributes["files"] = {
        str(file.relative_to(root)): crc_of(file.read_bytes())
        for file in plain_files(root, attributes)
    }
    attributes.pop("build", None)  # from here on the same options give the same bytes
    attributes["ledger"] = ledger
    attributes["crc32c"] = "0" * 8
    text = json.dumps(metadata).encode()
    aside = path.with_suffix(".partial")
    aside.write_bytes(
        text.replace(b'"crc32c": "' + b"0" * 8, f'"crc32c": "{crc_of(text)}'.encode())
    )
    sync(aside)
    aside.replace(path)


def plain_files(root: Path, attributes: Mapping[str, Any]) -> list[Path]:
    """Every file of a store but the group's metadata and the chunks of targets."""
    arrays = [*attributes["targets"], *attributes["columns"]]
    chunks = [file for name in attributes["columns"] for file in (root / name / "c").rglob("*")]
    return [root / name / METADATA for name in arrays] + sorted(filter(Path.is_file, chunks))


def own_damage(root: Path) -> CacheError | None:
    """What is wrong with the group's metadata of a sealed store, going by their own CRC."""
    text = _bytes_of(root / METADATA)
    found = [*_OWN.finditer(text)]
    if len(found) == 1:
        start, end = found[0].span(1)
        if crc_of(text[:start] + b"0" * 8 + text[end:]).encode() == found[0][1]:
            return None
    return damaged(root / METADATA, "its checksum doesn't fit")


def file_damage(path: Path, crc: str) -> CacheError | None:
    """What is wrong with a file that should have this CRC."""
    if not path.is_file():
        return damaged(path, "the file is gone")
    return None if crc_of(_bytes_of(path)) == crc else damaged(path, "its checksum doesn't fit")


def crc_of(content: bytes | np.ndarray) -> str:
    """CRC-32C as eight hex digits."""
    return f"{google_crc32c.value(content):08x}"


def damaged(path: Path, why: str) -> CacheError:
    return CacheError(
        f"{path}: damaged ({why}). Bring back a copy of this file, or make it anew (whole chunks "
        "are kept where the store's other files are whole): make teacher-cache FORCE=1"
    )


def sync(path: Path) -> None:
    """Put a file's content, or a folder's entries, on disk."""
    feature = os.open(path, os.O_RDONLY)
    try:
        os.fsync(feature)
    finally:
        os.close(feature)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
