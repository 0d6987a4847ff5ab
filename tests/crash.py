"""Crash points: an audit hook stops the process's writes from the k-th on, for every k.

What Python writes through its own file objects and `os` raises audit events; a library that writes
by itself, as `torch.save(path)` does, is not seen. Half-written content must be made by hand, as
`with` still flushes.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_EVENTS = {"os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Crash(BaseException):
    """Nothing is written any more; only `crashes` catches it."""


class _Switch:
    """What the hook, which can't be taken away, does now."""

    left: int | None = None
    """Writes that are still done; None: all."""
    under: str = ""
    seen: int = 0


_installed = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _Switch.left is None or not (event in _EVENTS or event == "open"):
        return
    if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITES):
        return
    try:
        path = os.fsdecode(args[0])
    except TypeError:  # a descriptor
        return
    if Path(path).is_absolute() and not path.startswith(_Switch.under):
        return
    _Switch.seen += 1
    if _Switch.seen > _Switch.left:
        raise Crash(f"{event} {path}")


def crash_at(point: int, call: Callable[[], object], under: Path) -> bool:
    """Call, without its writes below a folder from the point-th on (0: all); whether it crashed."""
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    _Switch.left, _Switch.under, _Switch.seen = point, str(under), 0
    try:
        call()
    except Crash:
        return True
    finally:
        _Switch.left = None
    return False


def crashes(start: Callable[[], object], call: Callable[[], object], under: Path) -> Iterator[int]:
    """Crash a call at every point, each time from a new start; yields after each crash.

    The loop's body looks at what is there and makes the call again. It ends with the first point
    that the call does not reach.
    """
    for point in itertools.count():
        start()
        if not crash_at(point, call, under):
            assert point, "the call writes nothing"
            return
        yield point
