"""Is a store what was written? Every byte of every file against its checksum."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from deskpro.cache.errors import CacheError
from deskpro.cache.ledger import from_attributes
from deskpro.cache.schema import (
    ATTRIBUTE,
    CRC_BYTES,
    METADATA,
    Field,
    Schema,
    file_damage,
    own_damage,
)


@dataclass(frozen=True)
class Damage:
    """A file that isn't what was written; block and view where it holds targets."""

    file: Path
    what: str
    block: int | None = None
    view: int | None = None

    def __str__(self) -> str:
        place = "" if self.block is None else f"block {self.block}, view {self.view}: "
        return f"{self.file}: {place}{self.what}"


def verify(root: Path) -> list[Damage]:
    """Everything that is wrong with a finished store; empty where nothing is.

    Files are checked against what the group's metadata say of them, and those against their own
    CRC. Where the metadata can't be read nothing else can be told. Raises CacheError where there is
    no finished store.
    """
    path = root / METADATA
    if not root.exists():
        raise CacheError(f"{root}: no target cache here. Make it: make teacher-cache")
    found = [] if own_damage(root) is None else [Damage(path, "its checksum doesn't fit")]
    try:
        attributes = json.loads(path.read_bytes())["attributes"][ATTRIBUTE]
        if not {"ledger", "crc32c"} & attributes.keys():
            raise CacheError(f"{root}: not finished. Go on with: make teacher-cache")
        files, ledger = dict(attributes["files"]), from_attributes(attributes)
        schema = _schema(attributes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return found or [Damage(path, "unreadable")]

    listed = {path}
    for name, crc in files.items():
        listed.add(root / name)
        what = _plain(root / name, crc)
        if what:
            found.append(Damage(root / name, what))
    for block, view in schema.places():
        entry = ledger.get((block, view))
        for name in schema.fields:
            file = schema.chunk_file(root, name, block, view)
            listed.add(file)
            what = "the ledger doesn't list it" if entry is None else _chunk(file, entry.crc[name])
            if what:
                found.append(Damage(file, what, block, view))
    foreign_files = sorted(f for f in root.rglob("*") if f.is_file() and f not in listed)
    return found + [Damage(file, "not a file of this store") for file in foreign_files]


def _plain(file: Path, crc: str) -> str:
    """What is wrong with a file that is no chunk of targets."""
    try:
        if file_damage(file, crc) is None:
            return ""
    except OSError as error:
        return f"can't be read: {error}"
    return "its checksum doesn't fit" if file.is_file() else "the file is gone"


def _chunk(file: Path, crc: str) -> str:
    """What is wrong with a chunk file."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return "the file is gone"
    except OSError as error:
        return f"can't be read: {error}"
    own = f"{int.from_bytes(content[-CRC_BYTES:], 'little'):08x}"
    if f"{google_crc32c.value(content[:-CRC_BYTES]):08x}" != own:
        return "its checksum doesn't fit"
    return "" if own == crc else "it isn't the chunk that the ledger speaks of"


def _schema(attributes: dict[str, Any]) -> Schema:
    """Where the chunks lie; zarr may refuse the arrays' own metadata, damaged as they may be."""
    fields = {
        name: Field(tuple(shape), "uint8", ()) for name, shape in attributes["targets"].items()
    }
    return Schema(attributes["samples"], attributes["views"], attributes["block"], fields)
