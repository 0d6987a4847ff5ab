"""How large a store will be, from its schema alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deskpro.cache.chunk import CRC_BYTES
from deskpro.cache.schema import ChunkKey, ChunkRecord, Columns, Schema, group_files, root_files
from deskpro.cache.sealed import sealed_bytes


class Size(NamedTuple):
    """chunks: bytes of the chunk files of targets; of a root, of its columns. rest: bytes of
    metadata and seal. files: of both."""

    chunks: int
    rest: int
    files: int


def group_size(
    schema: Schema,
    fingerprint: Mapping[str, Any],
    depends: Sequence[str],
    facts: Mapping[str, Any] | None = None,
) -> Size:
    """The size of a finished group, all of whose samples have targets; facts: of each record."""
    total = schema.blocks * schema.views
    chunks = sum(schema.chunk_bytes(name) + CRC_BYTES for name in schema.fields) * total
    files = group_files(schema, fingerprint, depends, np.ones(1, bool))
    more_samples = schema.samples - 1 + 2 * (len(str(schema.samples)) - 1)  # in `valid`
    crc = dict.fromkeys(schema.fields, "0" * 8)
    record = ChunkRecord(ChunkKey(0, 0), crc, "0" * 64, dict(facts or {}))
    digits = _digits(schema.blocks) * schema.views + _digits(schema.views) * schema.blocks
    each = len(json.dumps(record.as_json())) - 2 + len(", ")  # two digits are counted below
    records = total * each - len(", ") + digits
    rest = sum(map(len, files.values())) + more_samples + sealed_bytes(files) + records
    return Size(chunks, rest, total * len(schema.fields) + len(files) + 1)


def root_size(columns: Columns, samples: int, characters: float) -> Size:
    """The size of a finished root; columns: of no sample; characters: the mean length of a text."""
    files = root_files(columns, samples)
    chunks = 0
    for column in columns.values():
        one = column.values.dtype.itemsize * math.prod(column.values.shape[1:])
        text = round(samples * (4 + characters)) + 4  # each text, and their number, have a count
        chunks += (text if column.is_text else samples * one) + CRC_BYTES
    rest = sum(map(len, files.values())) + sealed_bytes([*files, *(f"{c}/c.0" for c in columns)])
    return Size(chunks, rest, len(files) + len(columns) + 1)


def _digits(count: int) -> int:
    """Of the numbers from 0 to count − 1, written one after the other."""
    return count + sum(max(0, count - 10**k) for k in range(1, len(str(count))))
