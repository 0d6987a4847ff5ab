"""Why an output is fresh or stale, in words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deskpro.cache.files import sha256
from deskpro.pipeline.config import flatten
from deskpro.stages.base.options import Options
from deskpro.stages.data.layouts import IMAGE_SUFFIXES

NO_RECORD = "there is no record of how it was made"


def relevant(options: Options, prefixes: Iterable[str]) -> dict[str, Any]:
    """The options that an output depends on, by dotted name."""
    flat = flatten(options.model_dump(mode="json"))
    return {
        name: value
        for name, value in flat.items()
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
    }


def digests(
    files: Mapping[str, Path], images: Mapping[str, tuple[Path, str]]
) -> dict[str, str | None]:
    """What an output was made from, by its role: a digest per file, cache or (folder, glob).

    None for what isn't there: a student is as good as it was when its teacher is deleted. Images
    go by name, size and time of change.
    """
    found: dict[str, str | None] = {}
    for role, path in files.items():
        found[role] = sha256(path) if path.is_file() else _store_digest(path)
    for role, (folder, pattern) in images.items():
        found[role] = _images_digest(folder, pattern)
    return found


def reasons(
    record: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    inputs: Mapping[str, str | None],
) -> list[str]:
    """Why an output with this record isn't what options and inputs give now; empty when fresh."""
    if record is None:
        return [NO_RECORD]
    made: dict[str, Any] = record["options"]
    stale = [
        f"{name} was {made[name]}, is {value}" if name in made else f"{name} is new: {value}"
        for name, value in options.items()
        if name not in made or made[name] != value
    ]
    for name, digest in inputs.items():
        before = record["inputs"].get(name)
        if digest is not None and name in record["inputs"] and digest != before:
            stale.append(changed(name))
    for name in sorted(record["inputs"].keys() ^ inputs.keys()):
        stale.append(f"{name} {'is new' if name in inputs else 'is no longer used'}")
    return stale


def changed(role: str) -> str:
    """The reason that an input of this role is another one."""
    return f"{role} changed since"


def _store_digest(root: Path) -> str | None:
    """Over the indices of a store, which hold the hashes of all of its files."""
    digest = hashlib.sha256()
    indices = sorted(root.rglob("index/zarr.json"))
    for path in indices:
        digest.update(f"{path.relative_to(root)}\0{sha256(path)}\n".encode())
    return digest.hexdigest() if indices else None


def _images_digest(folder: Path, pattern: str) -> str | None:
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.glob(pattern)):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.exists():  # a link may lead nowhere
            status = path.stat()
            entry = f"{path.relative_to(folder)}\0{status.st_size}\0{status.st_mtime_ns}\n"
            digest.update(entry.encode(errors="surrogateescape"))
    return digest.hexdigest()
