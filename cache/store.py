"""A store on disk: its columns, its groups, and whether these can be relied on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from deskpro.cache.errors import BUILD, REBUILD, CacheError, absent, damaged, unfinished
from deskpro.cache.files import read_bytes, read_json
from deskpro.cache.journal import Journal
from deskpro.cache.schema import (
    ATTRIBUTE,
    FORMAT,
    JOURNAL,
    VALID,
    ChunkKey,
    ChunkRecord,
    Column,
    Schema,
    chunk_digests,
)
from deskpro.cache.sealed import INDEX, METADATA, Seal, checked, inside, read_seal

ChunkRecords = dict[ChunkKey, ChunkRecord]


class TargetStore:
    """The root of a finished store: columns and the names of its groups."""

    def __init__(self, root: Path) -> None:
        """Raises CacheError: nothing there, another format, not finished, or damaged."""
        if is_empty(root):
            raise absent(root)
        seal = read_seal(root)
        attributes = read_attributes(root, seal)
        if seal is None:
            raise unfinished(root)
        self.root, self._seal = root, seal
        try:
            self.samples, self.columns = (
                int(attributes["samples"]),
                [*map(str, attributes["columns"])],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(root / METADATA, f"it has other content: {error!r}") from None

    def column(self, name: str) -> np.ndarray:
        """What is known of each sample beforehand, [N, …], whole. Raises CacheError: damaged."""
        return load_column(self.root, name, self._seal).values

    def load_columns(self) -> dict[str, Column]:
        """All columns, with their axes. Raises CacheError: damaged."""
        return {name: load_column(self.root, name, self._seal) for name in self.columns}

    def groups(self) -> list[str]:
        """The names of the groups that can be opened, finished or not, in order."""
        folders = filter(_is_described, group_folders(self.root))
        return [str(folder.relative_to(self.root)) for folder in folders]

    def sealed(self, group: str) -> bool:
        """Whether a group is finished. Raises CacheError where its seal is damaged."""
        return read_seal(self.root / group) is not None

    def open(self, group: str, *, partly: bool = False) -> Group:
        """A group with the records of its chunks, as far as the present columns are theirs.

        partly: also a group of which chunks are missing or outdated.

        Raises:
            CacheError: it is not there, not finished, damaged, or made from other columns.
        """
        found = Group.load(self.root / group)
        if not (found.sealed or partly):
            raise unfinished(found.folder)
        wanted: dict[ChunkKey, str] = {}
        if found.schema.samples == self.samples and {*found.depends} <= {*self.columns}:
            columns = {name: load_column(self.root, name, self._seal) for name in found.depends}
            wanted = chunk_digests(
                found.schema, columns, found.fingerprint, found.depends, found.valid
            )
        others = outdated(found.records, wanted)
        if others and not partly:
            raise CacheError(
                f"{found.folder}: blocks {sorted({key.block for key in others})} were made from "
                "other images or views than the store has now",
                command=REBUILD,
                path=found.folder,
            )
        found.records = {k: r for k, r in found.records.items() if k not in others}
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
    records: ChunkRecords
    sealed: bool

    @classmethod
    def load(cls, folder: Path) -> Group:
        """Raises CacheError where it is not there, or damaged."""
        if not _is_described(folder):
            raise CacheError(f"{folder}: no such targets here", command=BUILD)
        seal = read_seal(folder)
        about = read_attributes(folder, seal)
        if "fields" not in about:
            raise CacheError(f"{folder}: not a group of targets")
        try:
            schema = Schema.from_json(about)
            fingerprint, depends = dict(about["fingerprint"]), list(about["depends"])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(folder / METADATA, f"it has other content: {error}") from None
        for name in schema.fields:
            file = f"{name}/{METADATA}"
            inside(folder, file) if seal is None else checked(folder, file, seal.files)
        return cls(
            folder,
            schema,
            fingerprint,
            depends,
            load_column(folder, VALID, seal).values,
            read_records(folder, seal),
            seal is not None,
        )


def outdated(records: ChunkRecords, wanted: Mapping[ChunkKey, str]) -> set[ChunkKey]:
    """The keys whose chunks were made from something else than the digests that are wanted."""
    return {key for key, record in records.items() if record.digest != wanted.get(key)}


def read_records(folder: Path, seal: Seal | None) -> ChunkRecords:
    """The records of a group: of its seal, or of its journal if it is not finished.

    A line of a journal that is no record is left out: its chunk is then not kept. Raises
    DamagedError for one of a seal.
    """
    found: ChunkRecords = {}
    for line in Journal(folder / JOURNAL).read() if seal is None else seal.chunks:
        try:
            key = ChunkKey.from_json(line)
            if "key" in line:
                found[key] = ChunkRecord.from_json(line)
            else:  # it is taken back: the chunk is about to be overwritten
                found.pop(key, None)
        except (AttributeError, ValueError) as error:
            if seal is not None:
                raise damaged(folder / INDEX, f"it has other content: {error}") from None
    return found


def read_attributes(folder: Path, seal: Seal | None) -> dict[str, Any]:
    """What a root's or a group's metadata say.

    Raises:
        CacheError: damaged, not a cache, or of another format.
    """
    try:
        # Where there is a seal damage must not pass for another format.
        text = checked(folder, METADATA, seal.files) if seal else read_bytes(folder / METADATA)
        attributes: dict[str, Any] = json.loads(text)["attributes"][ATTRIBUTE]
        version = attributes["format"]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise CacheError(f"{folder}: not a target cache ({error!r})") from None
    if version != FORMAT:
        raise CacheError(
            f"{folder}: cache format {version}, this version reads format {FORMAT}. Delete it "
            f"(rm -r {folder}), then rebuild it",
            command=BUILD,
        )
    return attributes


def load_column(folder: Path, name: str, seal: Seal | None) -> Column:
    """An array of one chunk. Raises CacheError where it is gone or damaged."""
    if seal is not None:
        for file in seal.files:
            if file.startswith(f"{name}/"):
                checked(folder, file, seal.files)
    inside(folder, f"{name}/{METADATA}")
    try:
        array = zarr.open_array(folder / name, mode="r")
        values = np.asarray(array[...])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise damaged(folder / name, str(error)) from None
    dims = array.metadata.dimension_names or ()  # type: ignore[union-attr]
    about = (str(array.attrs.get(key, "")) for key in ("units", "description"))
    return Column(values, tuple(map(str, dims)), *about)


def is_empty(root: Path) -> bool:
    """Whether nothing of a store is there, at most what an interrupted write left."""
    return not root.is_dir() or all(name.startswith(".") for name in os.listdir(root))  # noqa: PTH208 (names only)


def _is_described(folder: Path) -> bool:
    """Whether a group can be opened: not one whose writing was interrupted at its beginning."""
    return (folder / INDEX).exists() or (folder / METADATA).exists()


def group_folders(folder: Path) -> Iterator[Path]:
    """Every group of targets below a folder, in order: finished, unfinished, just begun, or without
    the seal that it had. Links are not followed."""
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()):
        if (path / INDEX).exists() or (path / JOURNAL).exists() or lost_seal(path):
            yield path
        elif not is_array(path):
            yield from group_folders(path)


def is_array(folder: Path) -> bool:
    """Whether zarr finds an array in a folder."""
    return _metadata(folder).get("node_type") == "array"


def lost_seal(folder: Path) -> bool:
    """Whether the seal of a group was removed: one in the making has a journal instead."""
    if (folder / INDEX).exists() or (folder / JOURNAL).exists():
        return False
    attributes = _metadata(folder).get("attributes")
    return isinstance(attributes, dict) and ATTRIBUTE in attributes


def _metadata(folder: Path) -> dict[str, Any]:
    """What zarr knows of a folder; empty where it can't be read."""
    try:
        found = read_json(folder / METADATA)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
