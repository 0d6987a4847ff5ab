"""Folders that are finished when a seal is written: the hash of every other file, and its own.

The seal is a zarr group without members, `index`, so that all that zarr meets is plain zarr.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from deskpro.cache.errors import damaged
from deskpro.cache.files import ASIDE, below, read_bytes, sync, write_bytes

METADATA = "zarr.json"
INDEX = "index/zarr.json"
_HEAD = b'{"zarr_format": 3, "node_type": "group", "attributes": {"sha256": "'
_MIDDLE, _TAIL = b'", "content": ', b"}}"
_BODY = slice(len(_HEAD) + 64 + len(_MIDDLE), -len(_TAIL))


class Seal(NamedTuple):
    """files: SHA-256 by path below the folder. chunks: the records of a group."""

    files: dict[str, str]
    chunks: list[dict[str, Any]]


def seal(folder: Path, files: Mapping[str, bytes], chunks: Iterable[dict[str, Any]] = ()) -> None:
    """Finish a folder in which these files are."""
    sync(folder)  # also the folders of the files
    body = json.dumps(Seal(_hashes(files), list(chunks))._asdict()).encode()
    write_bytes(folder / INDEX, _sealed(body))


def sealed_bytes(names: Iterable[str]) -> int:
    """The size of the seal of a folder with these files and without chunks."""
    hashes = dict.fromkeys(names, "0" * 64)
    return len(_sealed(json.dumps(Seal(hashes, [])._asdict()).encode()))


def unseal(folder: Path) -> None:
    """From here on the folder is not finished."""
    if (folder / INDEX).exists():
        (folder / INDEX).unlink()
        sync((folder / INDEX).parent)


def read_seal(folder: Path, *, strict: bool = True) -> Seal | None:
    """The seal of a folder; None where there is none.

    Raises DamagedError where it can't be read or its hash differs; unless strict, that counts as
    none.
    """
    try:
        text = read_bytes(folder / INDEX)
    except FileNotFoundError:
        return None
    except OSError as error:
        if strict:
            raise damaged(folder / INDEX, f"unreadable: {error}") from None
        return None
    why = "its checksum differs"
    if text == _sealed(text[_BODY]):
        try:
            found = Seal(**json.loads(text[_BODY]))
            return found if isinstance(found.files, dict) else None
        except (ValueError, TypeError):
            why = "it has other content"
    if strict:
        raise damaged(folder / INDEX, why)
    return None


def checked(folder: Path, name: str, files: Mapping[str, str]) -> bytes:
    """A file's content.

    Raises DamagedError where it is gone, lies outside of the folder, or its hash is not that of
    `files`.
    """
    content = _content(inside(folder, name))
    if content is None:
        raise damaged(folder / name, "the file is gone")
    if hashlib.sha256(content).hexdigest() != files.get(name):
        raise damaged(folder / name, "its checksum differs")
    return content


def inside(folder: Path, name: str) -> Path:
    """The path of a name that a seal, metadata or a journal gives. Raises DamagedError: outside."""
    try:
        return below(folder, name)
    except ValueError as error:
        raise damaged(folder, str(error)) from None


def is_sealed_with(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Whether a folder is finished, with exactly these files, and they are whole."""
    found = read_seal(folder, strict=False)
    return (
        found is not None
        and found.files == _hashes(files)
        and all(_content(folder / name) == content for name, content in files.items())
    )


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files that are not there with this content, and remove what a crash left."""
    for name, content in files.items():
        if _content(folder / name) != content:
            write_bytes(folder / name, content)
    for parent in {(folder / name).parent for name in (*files, INDEX)}:
        for aside in parent.glob(ASIDE):
            aside.unlink()


def _sealed(body: bytes) -> bytes:
    return _HEAD + hashlib.sha256(body).hexdigest().encode() + _MIDDLE + body + _TAIL


def _hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _content(path: Path) -> bytes | None:
    try:
        return read_bytes(path)
    except OSError:
        return None
