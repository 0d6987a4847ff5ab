"""How targets lie in a zarr v3 group, and what its reader may rely on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from cache.errors import CacheError

FORMAT = 1
"""Version of the layout; a reader refuses another."""
ATTRIBUTE = "target_cache"
"""Group attribute: format, block size, names of the targets, fingerprint, and `sealed` at last."""
LEDGER = "ledger.jsonl"
"""One line per written block, only in a store that isn't sealed yet."""
CRC_BYTES = 4
"""Every chunk file ends with the CRC-32C of what comes before."""


@dataclass(frozen=True)
class Field:
    """One array of targets: [samples, views, *shape]."""

    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    """Names of the axes after sample and view."""

    @property
    def fill(self) -> float | int:
        """What an unwritten place holds: NaN where the type has it. Presence is never read off."""
        return float("nan") if np.dtype(self.dtype).kind == "f" else 0


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

    def chunk_file(self, root: Path, name: str, block: int, view: int) -> Path:
        """Where zarr puts the chunk of a field that holds one view of one block."""
        tail = "/".join("0" for _ in self.fields[name].shape)
        return root / name / "c" / str(block) / str(view) / tail

    def chunk_bytes(self, name: str) -> int:
        """Bytes of a chunk without its CRC; chunks at the edge are as large as the others."""
        field = self.fields[name]
        return int(np.prod((self.block, *field.shape))) * np.dtype(field.dtype).itemsize


def create(
    root: Path, schema: Schema, per_sample: dict[str, np.ndarray], fingerprint: dict[str, Any]
) -> None:
    """An empty store with its arrays per sample, [N, …], already written."""
    group = zarr.create_group(
        root,
        zarr_format=3,
        attributes={
            ATTRIBUTE: {
                "format": FORMAT,
                "block": schema.block,
                "targets": list(schema.fields),
                "fingerprint": fingerprint,
            }
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
            config={"write_empty_chunks": True},
        )
    for name, values in per_sample.items():
        dims = ("sample", "view", "parameter")[: values.ndim]
        text = values.dtype.kind in "OUT"
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype="str" if text else values.dtype,
            compressors=None if text else [Crc32cCodec()],
            dimension_names=dims,
        )
        array[...] = values.astype(object) if text else values


def open_store(root: Path) -> tuple[zarr.Group, dict[str, Any]]:
    """The group and its attributes; CacheError where it isn't a cache of this format."""
    if not root.exists():
        raise CacheError(f"{root}: no target cache here. Make it: make teacher-cache")
    try:
        group = zarr.open_group(root, mode="r")
        attributes = dict(group.attrs[ATTRIBUTE])  # type: ignore[arg-type]
        version = attributes["format"]
    except (KeyError, ValueError, OSError, FileNotFoundError, TypeError) as error:
        raise CacheError(f"{root}: not a target cache ({error})") from None
    if version != FORMAT:
        raise CacheError(
            f"{root}: cache format {version}, this program reads {FORMAT}. "
            "Make it anew: make teacher-cache FORCE=1"
        )
    return group, attributes


def read_schema(group: zarr.Group, attributes: dict[str, Any]) -> Schema:
    """The schema of a store; CacheError where an array is gone."""
    fields, samples, views = {}, 0, 0
    for name in attributes["targets"]:
        array = get_array(group, name)
        dims = array.metadata.dimension_names or ()  # type: ignore[union-attr]
        fields[name] = Field(array.shape[2:], str(array.dtype), tuple(map(str, dims[2:])))
        samples, views = array.shape[:2]
    return Schema(samples, views, attributes["block"], fields)


def get_array(group: zarr.Group, name: str) -> zarr.Array:
    """An array of a store; CacheError where it is gone or unreadable."""
    try:
        array = group[name]
    except (KeyError, ValueError, OSError) as error:
        raise CacheError(
            f"{group.store_path}: its array {name} is damaged or gone ({error}). "
            "Make the cache anew: make teacher-cache FORCE=1"
        ) from None
    assert isinstance(array, zarr.Array)
    return array
