"""What can be wrong with a cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class CacheError(Exception):
    """A cache cannot be used; the message says why and what to type.

    differences: what a refusal is about, as `cache.fingerprint` finds it. command: a stage with
    the options to add, as `teacher-cache --force`, which makes the cache usable.
    """

    def __init__(self, message: str, differences: Sequence[Any] = (), *, command: str = "") -> None:
        super().__init__(message)
        self.differences, self.command = list(differences), command


class DamagedError(CacheError):
    """A file is not what was written."""


class UnfinishedError(CacheError):
    """It is not sealed yet."""


def damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(
        f"{path}: damaged ({why}). Restore this file from a copy, or rebuild (whole chunks are "
        "kept): make teacher-cache FORCE=1"
    )


def unfinished(folder: Path) -> UnfinishedError:
    return UnfinishedError(f"{folder}: not finished. To resume: make teacher-cache")
