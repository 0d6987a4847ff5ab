"""One builder at a time, known by name, for as long as it lives."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from deskpro.cache.errors import CacheError


class BuildLock:
    """Held while the file is open; the system frees it at the holder's death.

    Forked children, such as loader workers, don't hold it: they may outlive their parent.
    """

    def __init__(self, store: Path) -> None:
        """Raises CacheError, naming the holder, where another process builds `store`."""
        path = store.with_name(f".{store.name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise CacheError(f"{store}: {owner} is building it; wait for it") from None
        except OSError as error:
            self._file.close()
            raise CacheError(
                f"{path}: this file system can't lock files ({error}); put the run on another"
            ) from None
        held = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(held()))
        self._file.truncate(0)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._file.write(f"process {os.getpid()} on {platform.node()}, since {started},")
        self._file.flush()

    def release(self) -> None:
        if not self._file.closed:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()


def _forget(lock: BuildLock | None) -> None:
    """In a child: close its copy of the file, which frees nothing in the parent."""
    if lock is not None:
        lock._file.close()


def require_unlocked(store: Path) -> None:
    """Raise CacheError where a process builds `store` now: before work that it would waste."""
    BuildLock(store).release()


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Keep other processes out of `path` by a lock file beside it; what: the work, for them.

    The system frees it when the process ends. It is re-entrant in a process, and children, forked
    or spawned, do not own it.

    Raises:
        CacheError: another process has it, or the file system has no locks.
    """
    file = path.with_name(f".{path.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, is_singleton=True, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise CacheError(f"{path}: in use by {_holder(file)}. Wait until it ends") from None
    except OSError as error:
        raise CacheError(
            f"{file}: this file system cannot lock files ({error}). Use another for the run"
        ) from None
    try:
        if lock.lock_counter == 1:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            holder = {"pid": os.getpid(), "host": platform.node(), "since": since, "what": what}
            file.write_text(json.dumps(holder))
        yield
    finally:
        lock.release()


def _holder(file: Path) -> str:
    try:
        by = json.loads(file.read_text())
        return f"process {by['pid']} on {by['host']} since {by['since']} ({by['what']})"
    except (OSError, ValueError, KeyError, TypeError):  # it is about to write its name
        return "another process"
