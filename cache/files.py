"""Files that are complete or absent."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c

if TYPE_CHECKING:
    import numpy as np

ASIDE = ".*.partial*"
"""Pattern of the names that an interrupted `write_aside` leaves behind."""
_DAY = 86_400.0
"""Seconds."""


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """A path to write to; the file there is renamed to `path` when the block succeeds.

    The content is on disk before the name is, so that a crash leaves the old file or the new one.
    A block that fails leaves nothing behind; what a killed process left in the folder is removed
    when another first writes there. The name aside is unique across machines.

    Raises:
        OSError: the system refuses to write; it names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    token = f"{platform.node()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    aside = path.with_name(f".{path.stem}.{token}.partial{path.suffix}")
    try:
        with writing(path, aside):
            yield aside
            sync(aside)
            aside.replace(path)
            sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def write_folder_aside(path: Path) -> Iterator[Path]:
    """A new folder to fill; it takes the name `path` when the block succeeds.

    A folder that is there is replaced; a kill at that moment leaves neither. A block, or a
    replacement, that fails leaves the old folder, and nothing else. The files are written by
    `write_bytes` and its like.

    Raises:
        OSError: the system refuses to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    token = f"{platform.node()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    aside = path.with_name(f".{path.name}.{token}.partial")
    old = path.with_name(f".{path.name}-old.{token}.partial")
    try:
        aside.mkdir()
        yield aside
        sync(aside)
        if path.exists():
            path.rename(old)
        aside.rename(path)
        sync(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        for left in (aside, old):
            shutil.rmtree(left, ignore_errors=True)


_cleaned = set[Path]()
"""Folders in which this process has looked for what others left."""


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes were writing; once, as a folder may be large."""
    if folder in _cleaned:
        return
    _cleaned.add(folder)
    for aside in folder.glob(ASIDE):
        with suppress(FileNotFoundError):  # it is complete, or another process was quicker
            if _is_abandoned(aside):
                shutil.rmtree(aside) if aside.is_dir() else aside.unlink()


def _is_abandoned(aside: Path) -> bool:
    """Whether its process has ended; of one on another machine, whether it wrote for a day."""
    owner = re.search(r"\.(\d+)\.[0-9a-f]{8}\.partial", aside.name)
    if owner is None:
        return False
    if not aside.name[: owner.start()].endswith(f".{platform.node()}"):
        return aside.stat().st_mtime < time.time() - _DAY
    try:
        os.kill(int(owner[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        pass
    return False


@contextmanager
def writing(path: Path, aside: Path | None = None) -> Iterator[None]:
    """Name the file in an error of the system that comes while the block writes it.

    A library that writes to an open file may make an error of its own of it, as torch.save makes a
    RuntimeError: the system's error is its context, and is raised instead.

    Args:
        path: the file.
        aside: the name that it is written under.

    Raises:
        OSError: of the same kind, about `path`. Errors about other files stay as they are.
    """
    try:
        yield
    except Exception as error:
        cause = system_error(error)
        if cause is None or cause.filename not in (None, *map(str, filter(None, (path, aside)))):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def system_error(error: BaseException | None) -> OSError | None:
    """The error of the system that an error is, or comes from; None where there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


def below(folder: Path, name: str) -> Path:
    """The path of a name that was read from a file, below a folder.

    Raises:
        ValueError: it leads out of the folder: absolute, by `..`, or by a link.
    """
    path = folder / name
    inside = folder.resolve() in (path.parent.resolve() / path.name).parents
    if not inside or ".." in Path(name).parts:
        raise ValueError(f"{name} lies outside of {folder}")
    return path


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
        with writing(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_file(path: str | Path) -> io.BufferedReader:
    """A regular file to read; a FIFO would block, and a device may never end.

    Raises:
        OSError: it is none, or can't be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | Path) -> bytes:
    """The content of a regular file. Raises OSError."""
    with open_file(path) as file:
        return file.read()


def read_text(path: str | Path) -> str:
    """The content of a regular UTF-8 file. Raises OSError, UnicodeDecodeError."""
    return read_bytes(path).decode()


def read_json(path: str | Path) -> Any:
    """The content of a regular JSON file. Raises OSError, ValueError."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError("nested too deep") from None


def sha256(path: str | Path) -> str:
    """Hex digest of a regular file's content. Raises OSError."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32c(content: bytes | memoryview | np.ndarray) -> str:
    """CRC-32C as eight hex digits; content: any contiguous buffer of bytes."""
    return f"{google_crc32c.value(content):08x}"
