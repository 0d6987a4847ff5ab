"""What is known of files: digest, what an image has; read again only where one may have changed."""

from __future__ import annotations

import json
import logging
import os
import platform
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from deskpro.cache.files import sha256

_SETTLED = 2.0
"""Seconds after its last change from which on a file's times tell another change."""
_LOCK = 0.2
"""Seconds to wait for another process that writes."""
_KEPT_DAYS, _REFRESH_DAYS = 180, 7
"""Files that nobody asked for in so many days are forgotten; how often that is noted."""
_TABLE = """CREATE TABLE IF NOT EXISTS files_3 (
    path TEXT PRIMARY KEY, size INT, mtime INT, ctime INT, inode INT,
    sha256 TEXT, width INT, height INT, note TEXT, decoded INT, used INT) WITHOUT ROWID"""

Decode = Callable[[Path], tuple[int, int, str | None]]


class Facts(NamedTuple):
    """sha256: hex digest, "" of an unreadable file. width, height: in pixels, where decoded.

    note: what else the decoder found. problem: why it can't be read, or decoded.
    """

    sha256: str
    width: int | None = None
    height: int | None = None
    note: str | None = None
    problem: str | None = None


class _Row(NamedTuple):
    """A row of the database; stamp: size, time of change of content and of entry in ns, inode."""

    path: str
    stamp: tuple[int, ...]
    facts: Facts
    decoded: bool
    used: int = 0


class FileIndex:
    """A shortcut: a database of one user on one host. Deleting it costs time, never correctness.

    A file is known while size, both times and inode are those of the time when it was read. One
    that changed less than 2 s before it was read is read again the next time. Only the first
    process of a group (environment variable RANK) writes. Where the database can't be used, what
    is found out is kept in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """folder: of the database; $DESKPRO_CACHE, or ~/.cache/deskpro, unless given."""
        named = os.environ.get("DESKPRO_CACHE") or os.path.expanduser("~/.cache/deskpro")  # noqa: PTH111 (never raises)
        folder = folder or Path(named)
        self.path = folder / f"files.{os.getuid()}.{platform.node()}.sqlite"
        self._writes = os.environ.get("RANK", "0") == "0"
        self._memory: dict[str, _Row] | None = None
        if folder.parts[:1] == ("~",):
            self._forgo(OSError("this user has no home folder"))

    def probe(
        self,
        paths: Sequence[str | Path],
        decode: Decode | None = None,
        deep: bool = False,
        advance: Callable[[int], None] | None = None,
    ) -> dict[str, Facts]:
        """The facts of each file, by its path as given.

        Args:
            paths: of the files.
            decode: decodes an image to the end and returns (width, height, note). It raises
                OSError, RuntimeError, SyntaxError or ValueError for a bad file, whose message
                becomes its problem.
            deep: read every file, whatever its times.
            advance: called with how many more files are done.
        """
        advance = advance or (lambda _: None)
        names = {str(path): os.path.abspath(path) for path in paths}  # noqa: PTH100 (quicker)
        found = {
            path: row
            for path, row in ({} if deep else self._load({*names.values()})).items()
            if (row.decoded or decode is None) and _stamp(path) == row.stamp
        }
        day = int(time.time()) // 86_400
        to_save = [row for row in found.values() if row.used < day - _REFRESH_DAYS]
        unread = sorted({*names.values()} - found.keys())
        advance(len(names) - len(unread))
        settled = (time.time() - _SETTLED) * 1e9
        with ThreadPoolExecutor() as pool:
            for row in pool.map(partial(_read, decode=decode), unread):
                found[row.path] = row
                # A problem may be the disk's, not the file's.
                if row.facts.problem is None and max(row.stamp[1:3]) < settled:
                    to_save.append(row)
                advance(1)
        self._save([row._replace(used=day) for row in to_save])
        return {name: found[path].facts for name, path in names.items()}

    def _load(self, paths: set[str]) -> dict[str, _Row]:
        if self._memory is None:
            try:
                if not self.path.exists():
                    return {}
                with self._open() as database:
                    rows = database.execute(
                        "SELECT f.* FROM json_each(?) AS j JOIN files_3 AS f ON f.path = j.value",
                        [json.dumps([*paths])],
                    ).fetchall()
                return {r[0]: _Row(r[0], r[1:5], Facts(*r[5:9]), bool(r[9]), r[10]) for r in rows}
            except (sqlite3.Error, OSError) as error:
                self._forgo(error)
        return {path: row for path, row in (self._memory or {}).items() if path in paths}

    def _save(self, rows: Sequence[_Row]) -> None:
        if self._memory is None and self._writes and rows:
            values = [(r.path, *r.stamp, *r.facts[:4], r.decoded, r.used) for r in rows]
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self._open() as database, database:
                    marks = ", ".join("?" * len(values[0]))
                    database.executemany(f"INSERT OR REPLACE INTO files_3 VALUES ({marks})", values)
                    oldest = rows[0].used - _KEPT_DAYS
                    database.execute("DELETE FROM files_3 WHERE used < ?", [oldest])
            except (sqlite3.Error, OSError, UnicodeError) as error:
                self._forgo(error)
        if self._memory is not None:
            self._memory |= {row.path: row for row in rows}

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=_LOCK)) as database:
            database.execute(_TABLE)
            yield database

    def _forgo(self, error: Exception) -> None:
        """From here on, keep what is found out in memory."""
        self._memory = {}
        logging.getLogger(__name__).warning(
            "%s: the file index cannot be used (%s); this process reads images again. Delete it, "
            "or set DESKPRO_CACHE to a folder on a local disk",
            self.path,
            error,
        )


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 (quicker)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _read(path: str, decode: Decode | None) -> _Row:
    """Read a file; its stamp is of the time before."""
    stamp, digest = _stamp(path) or (), ""
    try:
        digest = sha256(path)
        found = decode(Path(path)) if decode else ()
        return _Row(path, stamp, Facts(digest, *found), decode is not None)
    except (OSError, RuntimeError, SyntaxError, ValueError) as error:
        problem = " ".join(str(error).split())
        return _Row(path, stamp, Facts(digest, problem=problem), decode is not None)
