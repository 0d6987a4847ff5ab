"""Files that are complete or absent."""

from __future__ import annotations

import hashlib
import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import google_crc32c

if TYPE_CHECKING:
    import numpy as np

ASIDE = ".*.partial*"
"""Pattern of the names that an interrupted `write_aside` leaves behind."""


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """A path to write to; the file there is renamed to `path` when the block succeeds.

    The content is on disk before the name is, so that a crash leaves the old file or the new one.
    A block that fails leaves nothing behind. The name aside is unique across machines.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token = f"{platform.node()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    aside = path.with_name(f".{path.stem}.{token}.partial{path.suffix}")
    try:
        yield aside
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text; `path` is complete or as before."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file's content; `path` is complete or as before."""
    with write_aside(path) as aside, aside.open("wb") as file:
        file.write(content)


def sync(path: Path) -> None:
    """Put a file's content, or a folder's entries, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32c(content: bytes | memoryview | np.ndarray) -> str:
    """CRC-32C as eight hex digits; content: any contiguous buffer of bytes."""
    return f"{google_crc32c.value(content):08x}"
