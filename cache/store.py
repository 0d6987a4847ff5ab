"""A store on disk: its columns, its groups, and whether these can be relied on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from deskpro.cache.errors import CacheError
from deskpro.cache.journal import Journal
from deskpro.cache.schema import (
    ATTRIBUTE,
    FORMAT,
    INDEX,
    JOURNAL,
    METADATA,
    RESERVED,
    VALID,
    ChunkKey,
    Column,
    Columns,
    Record,
    Schema,
    chunk_digests,
    damaged,
    read_index,
)

Records = dict[ChunkKey, Record]


class TargetStore:
    """The root of a finished store: columns and the names of its groups."""

    def __init__(self, root: Path) -> None:
        """Raises CacheError: nothing there, another format, not finished, or damaged."""
        self.root = root
        if not root.exists():
            raise CacheError(f"{root}: no target cache here. To build it: make teacher-cache")
        index = read_index(root)
        attributes = read_attributes(root, index)
        if index is None:
            raise unfinished(root)
        self.samples: int = attributes["samples"]
        self.columns: list[str] = attributes["columns"]
        self._files: dict[str, str] = index["files"]

    def column(self, name: str) -> np.ndarray:
        """What is known of each sample beforehand, [N, …], whole."""
        return self.load(name).values

    def load(self, name: str) -> Column:
        """A column with its axes; CacheError where it is gone or damaged."""
        return load_column(self.root, name, self._files)

    def groups(self) -> list[str]:
        """The names of its groups, finished or not, in order."""
        return [str(folder.relative_to(self.root)) for folder in group_folders(self.root)]

    def sealed(self, group: str) -> bool:
        """Whether a group is finished. Raises CacheError where its seal is damaged."""
        return read_index(self.root / group) is not None

    def open(self, group: str, *, unfinished_too: bool = False) -> Group:
        """A group whose chunks are those of the present columns.

        unfinished_too: also one whose records don't cover all, or that have been outdated.

        Raises:
            CacheError: it is not there, not finished, damaged, or made from other columns.
        """
        found = Group.load(self.root / group)
        if not found.sealed and not unfinished_too:
            raise unfinished(found.folder)
        columns = {name: self.load(name) for name in found.depends if name in self.columns}
        wanted = found.digests(columns, self.samples)
        current = {k: r for k, r in found.records.items() if r.digest == wanted.get(k)}
        if not unfinished_too and len(current) < found.schema.blocks * found.schema.views:
            blocks = sorted({key.block for key in found.schema.chunk_keys() if key not in current})
            raise CacheError(
                f"{found.folder}: blocks {blocks} were made from other images or views than the "
                "store has now. To update them: make teacher-cache FORCE=1"
            )
        found.records = current
        return found


@dataclass
class Group:
    """A group on disk, finished or not."""

    folder: Path
    schema: Schema
    fingerprint: dict[str, Any]
    depends: list[str]
    valid: np.ndarray
    """bool [N]: whether the sample has targets."""
    records: Records
    sealed: bool

    @classmethod
    def load(cls, folder: Path) -> Group:
        """Raises CacheError where it is not there, or damaged."""
        if not folder.exists():
            raise CacheError(f"{folder}: no such targets here. To build them: make teacher-cache")
        index = read_index(folder)
        about = read_attributes(folder, index)
        try:
            schema = Schema.from_json(about)
            fingerprint, depends = about["fingerprint"], about["depends"]
        except KeyError:
            raise CacheError(f"{folder}: not a group of targets") from None
        if index is not None:
            for name in schema.fields:
                checked(folder, f"{name}/{METADATA}", index["files"])
            valid = load_column(folder, VALID, index["files"]).values
            records = [Record.from_json(line) for line in index["chunks"]]
        else:
            valid = load_column(folder, VALID, None).values
            records = [*read_journal(folder).values()]
        found = {record.key: record for record in records}
        return cls(folder, schema, fingerprint, depends, valid, found, index is not None)

    def digests(self, columns: Columns, samples: int) -> dict[ChunkKey, str]:
        """What the digests of its chunks should be for columns of so many samples."""
        missing = any(name not in columns for name in self.depends)
        if missing or samples != self.schema.samples or len(self.valid) != samples:
            return {}
        return chunk_digests(self.schema, columns, self.fingerprint, self.depends, self.valid)


def read_journal(folder: Path) -> Records:
    """The records of an unfinished group; a line without a digest takes one back."""
    found: Records = {}
    for line in Journal(folder / JOURNAL).read():
        if "key" in line:
            record = Record.from_json(line)
            found[record.key] = record
        else:
            found.pop(ChunkKey(line["block"], line["view"]), None)
    return found


def read_attributes(folder: Path, index: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a root's or a group's metadata say; checked against its index where it has one.

    Raises:
        CacheError: damaged, not a cache, or of another format.
    """
    try:
        if index is not None:
            # Before anything is believed: damage must not pass for another format.
            text = checked(folder, METADATA, index["files"])
        else:
            text = (folder / METADATA).read_bytes()
        attributes: dict[str, Any] = json.loads(text)["attributes"][ATTRIBUTE]
        version = attributes["format"]
    except FileNotFoundError:
        state = "an unfinished cache" if (folder / INDEX).parent.exists() else "not a target cache"
        raise CacheError(f"{folder}: {state} (it has no {METADATA})") from None
    except (KeyError, ValueError, TypeError) as error:
        raise CacheError(f"{folder}: not a target cache ({error!r})") from None
    if version != FORMAT:
        raise CacheError(
            f"{folder}: cache format {version}, this version reads format {FORMAT}. Delete it "
            f"(rm -r {folder}), then rebuild it: make teacher-cache"
        )
    return attributes


def checked(folder: Path, name: str, files: Mapping[str, str]) -> bytes:
    """A file's content; CacheError where it is gone or its hash differs from the index's."""
    try:
        content = (folder / name).read_bytes()
    except OSError:
        raise damaged(folder / name, "the file is gone") from None
    if hashlib.sha256(content).hexdigest() != files.get(name):
        raise damaged(folder / name, "its checksum differs")
    return content


def load_column(folder: Path, name: str, files: Mapping[str, str] | None) -> Column:
    """An array of one chunk; files: the hashes that its files must have."""
    metadata = folder / name / METADATA
    try:
        ndim = len(json.loads(metadata.read_bytes())["shape"])
        chunk = f"{name}/{'.'.join(['c', *['0'] * ndim])}"
        for file in (f"{name}/{METADATA}", chunk) if files is not None else ():
            checked(folder, file, files or {})
        if not (folder / chunk).is_file():  # zarr would give the fill value for it
            raise damaged(folder / chunk, "the file is gone")
        array = zarr.open_array(folder / name, mode="r")
        values = np.asarray(array[...])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise damaged(metadata, str(error)) from None
    dims = array.metadata.dimension_names or ()  # type: ignore[union-attr]
    about = (str(array.attrs.get(key, "")) for key in ("units", "description"))
    return Column(values, tuple(map(str, dims)), *about)


def group_folders(folder: Path) -> Iterator[Path]:
    """Every group of targets below a folder, in order."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_dir() or entry.name in RESERVED or entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if is_group(path):
            yield path
        elif node_type(path) != "array":
            yield from group_folders(path)


def is_group(folder: Path) -> bool:
    """Whether a folder is a group of targets, finished or not."""
    return (folder / INDEX).exists() or (folder / JOURNAL).exists()


def node_type(folder: Path) -> str | None:
    """What zarr finds in a folder, array or group; None where the metadata can't be read."""
    try:
        found = json.loads((folder / METADATA).read_bytes())["node_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)


def unfinished(folder: Path) -> CacheError:
    return CacheError(f"{folder}: not finished. To resume: make teacher-cache")
