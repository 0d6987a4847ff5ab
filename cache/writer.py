"""Write targets block by block; the store appears under its name when the last block is in."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import zarr

from cache.errors import CacheError
from cache.fingerprint import differences
from cache.schema import ATTRIBUTE, LEDGER, Schema, create, open_store, read_schema


class TargetWriter:
    """A target cache in the making, in a folder beside its final name.

    A block — all its samples, all views, all fields — is a transaction: its chunk files are written
    and synced, then one line is added to a ledger. What the ledger lists is there; what it doesn't
    list never was. A writer that finds an unfinished store with the same fingerprint goes on where
    the ledger ends; any other unfinished store is thrown away.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        per_sample: dict[str, np.ndarray],
        fingerprint: dict[str, Any],
    ) -> None:
        """per_sample: arrays [N, …] that are known beforehand, written as they are."""
        self.path, self.schema = path, schema
        self.root = path.with_name(path.name + ".partial")
        self._lock = _take_lock(path.with_name(f".{path.name}.lock"))
        if not self._resumable(fingerprint):
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.parent.mkdir(parents=True, exist_ok=True)
            create(self.root, schema, per_sample, fingerprint)
            _sync_tree(self.root)
            (self.root / LEDGER).touch()
        self._group = zarr.open_group(self.root, mode="r+")
        self._written = self._read_ledger()

    def pending(self) -> list[int]:
        """The blocks that are still to be written, in order."""
        return [block for block in range(self.schema.blocks) if block not in self._written]

    def write(self, block: int, targets: Mapping[str, np.ndarray]) -> None:
        """Write one block: for every field an array [rows of the block, V, *shape] of its type.

        Raises CacheError where fields, shapes or types aren't the schema's, and writes nothing.
        """
        rows = self.schema.rows(block)
        if set(targets) != set(self.schema.fields):
            wanted = ", ".join(self.schema.fields)
            raise CacheError(f"block {block}: fields {', '.join(targets)}, the cache has {wanted}")
        for name, field in self.schema.fields.items():
            shape = (rows.stop - rows.start, self.schema.views, *field.shape)
            found = targets[name]
            if found.shape != shape or found.dtype != np.dtype(field.dtype):
                raise CacheError(
                    f"block {block}: {name} is {found.dtype}{list(found.shape)}, "
                    f"must be {field.dtype}{list(shape)}"
                )
        for name in self.schema.fields:
            self._group[name][rows] = targets[name]  # type: ignore[index]
            for view in range(self.schema.views):
                _sync(self.schema.chunk_file(self.root, name, block, view))
        with (self.root / LEDGER).open("a") as ledger:
            ledger.write(json.dumps({"block": block}) + "\n")
            ledger.flush()
            os.fsync(ledger.fileno())
        self._written.add(block)

    def seal(self) -> None:
        """Give the complete store its name; a store of that name is replaced."""
        missing = self.pending()
        if missing:
            raise CacheError(f"{self.path}: blocks {missing} aren't written, can't be sealed")
        self._group.update_attributes(
            {ATTRIBUTE: {**self._group.attrs[ATTRIBUTE], "sealed": True}}  # type: ignore[dict-item]
        )
        (self.root / LEDGER).unlink(missing_ok=True)
        _sync_tree(self.root)
        old = self.path.with_name(self.path.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.path.exists():
            self.path.rename(old)
        self.root.rename(self.path)
        _sync(self.path.parent)
        shutil.rmtree(old, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let another writer go on; what is written stays."""
        self._lock.close()

    def _resumable(self, fingerprint: dict[str, Any]) -> bool:
        if not self.root.exists():
            return False
        try:
            group, attributes = open_store(self.root)
            same = read_schema(group, attributes) == self.schema
        except (CacheError, KeyError, AssertionError):
            return False  # killed while it was being created: there is nothing in it
        sealed = attributes["fingerprint"]
        return same and sealed.keys() == fingerprint.keys() and not differences(sealed, fingerprint)

    def _read_ledger(self) -> set[int]:
        if self._group.attrs[ATTRIBUTE].get("sealed"):  # type: ignore[union-attr]
            return set(range(self.schema.blocks))
        ledger = self.root / LEDGER
        ledger.touch()
        lines = ledger.read_text().splitlines(keepends=True)
        # A line without its end was torn by a crash; its block is written again.
        whole = [line for line in lines if line.endswith("\n")]
        if whole != lines:
            ledger.write_text("".join(whole))
        return {json.loads(line)["block"] for line in whole}


def _take_lock(path: Path) -> IO[str]:
    """Hold the only writer's place while the file is open; the system frees it at a death."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise CacheError(f"{path.parent}: {owner} is building this cache; wait for it") from None
    file.truncate(0)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    file.write(f"process {os.getpid()} on {platform.node()}, since {started},")
    file.flush()
    return file


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))
