"""The log of a run folder: every line with the time, appended."""

from __future__ import annotations

import errno
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from deskpro.cache.files import writing

NAME = "deskpro.log"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors that the next output file would meet, too."""


class LogFile:
    """Appends lines to `deskpro.log` of a run folder, which it never makes.

    Lines wait until the folder exists: a command that is refused before leaves nothing behind. The
    file is opened for each line, so that several processes may write to one.
    """

    def __init__(self, folder: Path, complain: Callable[[str], object]) -> None:
        """complain: is told, once, why the file cannot be written."""
        self.path, self._complain = folder / NAME, complain
        self._waiting: list[str] | None = []

    def wait(self, text: str) -> None:
        """Append lines when the next is written."""
        if self._waiting is not None:
            now = datetime.now().astimezone().isoformat(" ", "seconds")
            self._waiting += [f"{now}  {line}".rstrip() + "\n" for line in text.splitlines()]

    def write(self, text: str, *, last: bool = False) -> None:
        """Append lines.

        Args:
            text: the lines.
            last: a command failed; if that is all there is to tell of a run, nothing is written.

        Raises:
            OSError: the disk is full. For other errors the work goes on without a log.
        """
        self.wait(text)
        run = self.path.parent
        begun = run.is_dir() if not last else self.path.exists() or (run / "config.yaml").exists()
        if not self._waiting or not begun:
            return
        lines, self._waiting = self._waiting, []
        try:
            with writing(self.path), self.path.open("a", errors="surrogateescape") as file:
                file.write("".join(lines))
        except OSError as error:
            self._waiting = None
            if error.errno in _FULL:
                raise
            self._complain(f"{self.path}: {error.strerror}; this command goes on without a log")
