"""What can be wrong with a cache."""

from __future__ import annotations

from pathlib import Path

BUILD, REBUILD = "teacher-cache", "teacher-cache --force"


class CacheError(Exception):
    """A cache cannot be used; the message says why.

    command: a stage with the options to add, as `teacher-cache --force`, which makes the cache
    usable. path: the file or folder that is wrong, if it is one.
    """

    def __init__(self, message: str, *, command: str = "", path: Path | None = None) -> None:
        super().__init__(message)
        self.command, self.path = command, path


class DamagedError(CacheError):
    """A file is not what was written; why: in short."""

    why = ""


class UnfinishedError(CacheError):
    """It is not sealed yet."""


def damaged(path: Path, why: str) -> DamagedError:
    advice = "Restore this file from a copy, or rebuild (whole chunks are kept)"
    error = DamagedError(f"{path}: damaged ({why}). {advice}", command=REBUILD, path=path)
    error.why = why
    return error


def unfinished(folder: Path) -> UnfinishedError:
    return UnfinishedError(f"{folder}: not finished", command=BUILD)


def absent(path: Path) -> CacheError:
    return CacheError(f"{path}: no target cache here", command=BUILD)
