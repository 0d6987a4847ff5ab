"""Logs of a run folder, every line with the time, appended: of commands, and of each worker."""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import datetime
from pathlib import Path

from deskpro.cache.files import writing

NAME = "deskpro.log"
WORKERS = "logs"
"""The folder of the workers' logs, below that of the run."""
LIMIT = 1_000_000
"""Bytes of a worker's log; one that would grow beyond it is renamed, in the place of the last."""
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
        if self._waiting and begun:
            self._append()

    def _append(self) -> None:
        text, self._waiting = "".join(self._waiting or []), []
        try:
            with writing(self.path):
                self._make_room(len(text.encode(errors="surrogateescape")))
                with self.path.open("a", errors="surrogateescape") as file:
                    file.write(text)
        except OSError as error:
            self._waiting = None
            if error.errno in _FULL:
                raise
            self._complain(f"{self.path}: {error.strerror}; this command goes on without a log")

    def _make_room(self, size: int) -> None:
        """Before so many bytes are appended."""


class WorkerLog(LogFile):
    """The log of a worker, `logs/WORK-worker-N.log` of the run folder; the driver writes it.

    It takes two files of `LIMIT` bytes at most, however often a command is repeated. What `wait`
    is given is written with the next line that stands for work, or a failure: work that is refused
    at once leaves no log.
    """

    def __init__(
        self, run: Path, work: str, number: int, complain: Callable[[str], object]
    ) -> None:
        """work: what is done, as its bar has it."""
        super().__init__(run, complain)
        name = re.sub(r"[^\w.=,-]+", "-", work)
        self.path = run / WORKERS / f"{name}-worker-{number}.log"

    @property
    def old(self) -> Path:
        """Where the lines before those of the log are."""
        return self.path.with_name(f"{self.path.stem}.old.log")

    def wait(self, text: str) -> None:
        super().wait(text[-LIMIT // 2 :])
        if self._waiting is not None and sum(map(len, self._waiting)) > LIMIT // 2:
            self._append()  # a library prints without end

    def write(self, text: str, *, last: bool = False) -> None:
        """Append lines. last: nothing, unless there are lines already."""
        self.wait(text)
        if self._waiting and (not last or self.path.exists()):
            self._append()

    def _make_room(self, size: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size + size > LIMIT:
            self.path.replace(self.old)


@contextmanager
def printed(write: Callable[[str], object]) -> Iterator[None]:
    """While the block runs, what Python prints is written elsewhere, by lines."""
    lines = _Lines(write)
    with redirect_stdout(lines), redirect_stderr(lines):
        try:
            yield
        finally:
            lines.end()


class _Lines(io.TextIOBase):
    """A text file whose lines are written elsewhere."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write, self._rest = write, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        if lines:
            self._write("\n".join(lines))
        return len(text)

    def end(self) -> None:
        """Write what is no whole line."""
        if self._rest:
            self.write("\n")
