"""One process at a time, known by name for as long as it lives."""

from __future__ import annotations

import errno
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from deskpro.cache.errors import CacheError
from deskpro.cache.files import read_json, writing

_NOT_OF_LOCKS = {
    errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM,
}  # fmt: skip
"""Errors at a lock file that any other file would meet, too."""


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Keep other processes out of `path` by a lock file beside it; what: the work, for them.

    A link, and `.`, is the folder that it leads to. The system frees the lock when the process
    ends. It is re-entrant in a process, and children, forked or spawned, do not own it.

    Raises:
        CacheError: another process has it, or the file system has no locks.
        OSError: nothing can be written there, or too many files are open.
    """
    real = Path(os.path.realpath(path))
    file = real.with_name(f".{real.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, is_singleton=True, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise CacheError(f"{path}: in use by {_holder(file)}. Wait until it ends") from None
    except OSError as error:
        if error.errno in _NOT_OF_LOCKS:
            raise OSError(error.errno, error.strerror, str(file)) from None
        raise CacheError(
            f"{file}: this file system cannot lock files ({error}). Use another for the run"
        ) from None
    try:
        if lock.lock_counter == 1:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            holder = {"pid": os.getpid(), "host": platform.node(), "since": since, "what": what}
            with writing(file):
                file.write_text(json.dumps(holder))
        yield
    finally:
        lock.release()


def _holder(file: Path) -> str:
    """Who has the lock; a record of an earlier holder, who has ended, is not yet replaced."""
    for _ in range(20):
        with suppress(OSError, ValueError, KeyError, TypeError):  # it is about to write its name
            by = read_json(file)
            if by["host"] != platform.node() or _lives(by["pid"]):
                return f"process {by['pid']} on {by['host']} since {by['since']} ({by['what']})"
        time.sleep(0.05)
    return "another process"


def _lives(pid: int) -> bool:
    """Whether it is a process of this machine, and not this one."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return True
    except OSError:
        return False
    return pid != os.getpid()
