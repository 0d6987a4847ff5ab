"""Chunk files: the content and then its CRC-32C, four bytes, little-endian."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from deskpro.cache.errors import damaged
from deskpro.cache.files import crc32c, open_file, writing

CRC_BYTES = 4
"""Of the checksum at the end of each chunk."""


def write_chunk(path: Path, content: bytes) -> str:
    """Write a chunk and return its CRC; a reader's map keeps the earlier file.

    Raises OSError where the system refuses to write; no file is left then.
    """
    crc = crc32c(content)
    path.unlink(missing_ok=True)
    try:
        with writing(path), path.open("wb") as file:
            file.write(content)
            file.write(int(crc, 16).to_bytes(CRC_BYTES, "little"))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return crc


def open_chunk(path: Path, size: int, crc: str, *, deep: bool = True) -> BinaryIO:
    """Open a chunk file that is whole: of `size` bytes and a CRC, which is `crc` (hex digits).

    deep: the content has that CRC, too; else only the end of the file is read.

    Raises:
        DamagedError: it is gone, unreadable, or not the chunk that was written.
    """
    try:
        file = open_file(path)
    except FileNotFoundError:
        raise damaged(path, "the file is gone") from None
    except OSError as error:
        raise damaged(path, f"unreadable: {error}") from None
    try:
        problem = _problem(file, size, crc, deep=deep)
    except OSError as error:
        problem = f"unreadable: {error}"
    if problem:
        file.close()
        raise damaged(path, problem)
    return file


def check_chunk(path: Path, size: int, crc: str, *, deep: bool = True) -> None:
    """Raise DamagedError where a chunk file is not whole (`open_chunk`)."""
    open_chunk(path, size, crc, deep=deep).close()


def _problem(file: BinaryIO, size: int, crc: str, *, deep: bool) -> str:
    found = file.seek(0, os.SEEK_END)
    if found != size + CRC_BYTES:
        return f"{found} bytes, must be {size + CRC_BYTES}"
    file.seek(size)
    stored = f"{int.from_bytes(file.read(), 'little'):08x}"
    file.seek(0)
    if deep and crc32c(file.read(size)) != stored:
        return "its checksum differs"
    return "" if stored == crc else "it is not the chunk of its record"
