"""A finished store as one file, which any zarr reads as it is: a zip of stored members.

A manifest, itself a plain zarr group, has size and SHA-256 of every other member. The comment that
ends the zip is the SHA-256 of all bytes before it, headers and directory included.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from deskpro.cache.errors import CacheError, damaged
from deskpro.cache.files import below, open_file, sync, write_aside, write_folder_aside
from deskpro.cache.lock import hold
from deskpro.cache.schema import FORMAT
from deskpro.cache.sealed import INDEX
from deskpro.cache.store import TargetStore
from deskpro.cache.verify import FOREIGN, verify

MANIFEST = "manifest/zarr.json"
ATTRIBUTE = "packed_target_cache"
"""Attribute of the manifest: format, digest, files."""
_LENGTH = 64
"""Bytes of the comment: a SHA-256 as hex digits."""
_PLAIN = zipfile.ZIP_STORED, 0o100644 << 16, (1980, 1, 1, 0, 0, 0)
"""Compression, mode and time of every member: they tell nothing, and equal caches pack alike."""
_UNREADABLE = (
    zipfile.BadZipFile, struct.error, ValueError, KeyError, TypeError, AttributeError, EOFError,
    NotImplementedError, RuntimeError, OverflowError,
)  # fmt: skip
"""What zipfile and json raise for content that is none of theirs."""


class Manifest(NamedTuple):
    """files: size in bytes and SHA-256 by path below the store. digest: SHA-256 of `files`, which
    tells a cache from others wherever it lies."""

    files: dict[str, tuple[int, str]]
    digest: str

    @classmethod
    def of(cls, files: dict[str, tuple[int, str]]) -> Manifest:
        return cls(files, hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest())

    @property
    def seals(self) -> dict[str, str]:
        """SHA-256 of the seals of the root and of its groups, by path."""
        return {n: sha256 for n, (_, sha256) in self.files.items() if f"/{n}".endswith(f"/{INDEX}")}


class Packed(NamedTuple):
    """An open file that `pack` wrote, and what its manifest says."""

    file: Path
    archive: zipfile.ZipFile
    manifest: Manifest


def pack(root: Path, out: Path, *, force: bool) -> Manifest:
    """Write a finished store, with the groups of every teacher, to one file.

    Two packs of one store are equal, byte by byte. No file is held in memory. force: `out` may be
    replaced.

    Raises:
        CacheError: the store is not finished, damaged or in use, or `out` is there or lies in it.
    """
    TargetStore(root)  # before a lock is made beside it
    if out.is_dir() or out.resolve().is_relative_to(root.resolve()):
        raise CacheError(f"{out}: must be a file outside of {root}, such as {root.name}.zip")
    if out.exists() and not force:
        raise CacheError(f"{out}: exists. Give another name, or replace it with --force")
    with hold(root, "packing"):
        _require_whole(root)
        files = [path for path in root.rglob("*") if path.is_file()]
        names = sorted(path.relative_to(root).as_posix() for path in files)
        with write_aside(out) as aside:
            with zipfile.ZipFile(aside, "w") as archive:
                archive.comment = b"0" * _LENGTH
                manifest = Manifest.of({name: _add(archive, name, root / name) for name in names})
                about = {ATTRIBUTE: {"format": FORMAT, **manifest._asdict()}}
                group = {"zarr_format": 3, "node_type": "group", "attributes": about}
                archive.writestr(_member(MANIFEST), json.dumps(group))
            with aside.open("r+b") as file:
                comment, _ = _comments(file)
                file.seek(-_LENGTH, os.SEEK_END)
                file.write(comment)
    return manifest


@contextmanager
def opened(file: Path) -> Iterator[Packed]:
    """A packed store, read whole once: every byte is as `pack` wrote it.

    Raises:
        CacheError: it can't be opened, is damaged, of another format, or no packed store.
    """
    try:
        content = open_file(file)
    except OSError as error:
        raise CacheError(f"{file}: not a packed cache ({error.strerror})") from None
    with content:
        if len({*_comments(content)}) > 1:
            raise CacheError(
                f"{file}: damaged, incomplete or not a packed cache (its last {_LENGTH} bytes are "
                "not the SHA-256 of the bytes before). Copy it again, or pack the cache again: "
                f"deskpro cache pack RUN {file.name}"
            )
        try:
            archive = zipfile.ZipFile(content)
            manifest = _read_manifest(archive, content.seek(0, os.SEEK_END))
        except (*_UNREADABLE, RecursionError) as error:
            raise CacheError(f"{file}: not a packed cache ({error})") from None
        yield Packed(file, archive, manifest)


@contextmanager
def unpacking(packed: Packed, root: Path) -> Iterator[None]:
    """Write a packed store aside, each file against its hash; it takes the place of `root` when
    the block succeeds.

    Raises:
        CacheError: a file is not what the manifest says, would lie elsewhere, or all together are
            no finished store.
        OSError: the system refuses to write.
    """
    file, archive, manifest = packed
    with write_folder_aside(root) as aside:
        for name, (size, sha256) in manifest.files.items():
            try:
                path = below(aside, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, path.open("xb") as target:
                    found = _copy(source, target)
            except _UNREADABLE as error:
                raise CacheError(f"{file}: {name}: not unpacked ({error})") from None
            if found != (size, sha256):
                raise CacheError(f"{file}: {name}: not what its manifest says")
            sync(path)
        for folder in {(aside / name).parent for name in manifest.files}:
            sync(folder)
        try:
            _require_whole(aside)
        except CacheError as error:
            why = str(error).replace(f"{aside}", "").partition(". ")[0]
            raise CacheError(f"{file}: holds no finished cache ({why})") from None
        yield


def _require_whole(root: Path) -> None:
    """Refuse a store that is unfinished, damaged, or has targets of other images than its own."""
    store = TargetStore(root)
    for group in store.groups():
        store.open(group)
    if found := verify(root):
        if found[0].what == FOREIGN:
            raise CacheError(f"{found[0]}. Move it away")
        raise damaged(found[0].file, found[0].what)


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.compress_type, member.external_attr, member.date_time = _PLAIN
    member.create_system = 3  # Unix, whose modes these are
    return member


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> tuple[int, str]:
    """Add a file; its size and SHA-256."""
    member = _member(name)
    member.file_size = path.stat().st_size  # decides on zip64
    with open_file(path) as source, archive.open(member, "w") as target:
        return _copy(source, target)


def _copy(source: IO[bytes], target: IO[bytes]) -> tuple[int, str]:
    """Copy all bytes; their number and SHA-256."""
    digest, size = hashlib.sha256(), 0
    while block := source.read(1 << 20):
        digest.update(block)
        size += target.write(block)
    return size, digest.hexdigest()


def _comments(file: IO[bytes]) -> tuple[bytes, bytes]:
    """The comment that a packed store should end with, and the one that it has."""
    left, digest = max(0, file.seek(0, os.SEEK_END) - _LENGTH), hashlib.sha256()
    file.seek(0)
    while block := file.read(min(left, 1 << 20)):
        digest.update(block)
        left -= len(block)
    return digest.hexdigest().encode(), file.read()


def _read_manifest(archive: zipfile.ZipFile, size: int) -> Manifest:
    """The manifest of a zip of so many bytes.

    Raises ValueError where it isn't that of the zip, or a member is none that `pack` writes.
    """
    members = archive.infolist()
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members overlap, or are larger than the file")
    for member in members:
        name = member.filename
        if (member.compress_type, member.external_attr, member.date_time) != _PLAIN:
            raise ValueError(f"{name} is compressed, a link or of other attributes")
        if PurePosixPath(name).is_absolute() or str(PurePosixPath(name)) != name:
            raise ValueError(f"{name} is no plain path below a folder")
    about = json.loads(archive.read(MANIFEST))["attributes"][ATTRIBUTE]
    if about["format"] != FORMAT:
        raise ValueError(f"cache format {about['format']}, this version reads format {FORMAT}")
    manifest = Manifest.of(
        {name: (size, sha256) for name, (size, sha256) in about["files"].items()}
    )
    if manifest.digest != about["digest"]:
        raise ValueError("the digest of its manifest differs")
    found, wanted = sorted(archive.namelist()), sorted([*manifest.files, MANIFEST])
    if found != wanted:
        names = ", ".join(sorted({*found} ^ {*wanted})[:5]) or "one name twice"
        raise ValueError(f"members and manifest differ: {names}")
    return manifest
