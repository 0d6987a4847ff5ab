"""What the driver shows and writes of the workers of mapped work: one view, and a log of each."""

from __future__ import annotations

import reprlib
import time
import traceback

from deskpro.stages.base import progress
from deskpro.stages.base.display import clock, rates
from deskpro.stages.base.errors import InputError

_EACH = 8
"""As many workers have their rates shown; of more the slowest and the fastest."""


class Died(InputError):
    """A worker ended in the middle of its work."""


class Workers:
    """Counts items and times workers, below the bar of the work; the driver alone writes."""

    def __init__(self, count: int, total: int | None) -> None:
        """
        Args:
            count: Workers.
            total: Items; None where it is not known.
        """
        self._bar, self._total, self._started = progress.innermost(), total, 0
        work = "map" if self._bar is None else self._bar.title
        self._workers = [_WorkerState(progress.worker_log(work, number)) for number in range(count)]
        self._names = reprlib.Repr()
        self._names.maxlist, self._names.maxother = 1, 80

    def start(self, number: int, item: object) -> None:
        """A worker is given an item."""
        self._started += 1
        self._workers[number].start(f"item {self._started}", self._names.repr(item))
        self._show()

    def receive(self, number: int, event: progress.Event) -> None:
        """A worker reports on its item."""
        self._workers[number].receive(event)

    def end(self, number: int) -> None:
        """A worker has done its item."""
        self._workers[number].end()
        self._show()

    def failure(self, number: int, error: Exception) -> Exception:
        """The error that ends the work, with the log that has more to say of it."""
        path = self._workers[number].fail(error)
        if path is None:
            return error
        if isinstance(error, Died):
            return Died(f"{error}. Its log: {path}")
        error.add_note(f"The log of worker {number}: {path}")
        return error

    def _show(self) -> None:
        if self._bar is None:
            return
        done = sum(worker.done for worker in self._workers)
        counts = [f"{done} done", f"{self._started - done} running"]
        if self._total is not None:
            counts.append(f"{self._total - self._started} waiting")
        note = {"items": ", ".join(counts)}
        speeds = [worker.rate for worker in self._workers if worker.rate is not None]
        if len(speeds) > _EACH:
            note["each worker"] = rates([min(speeds), max(speeds)], "items", " to ")
        elif speeds:
            note["each worker"] = rates(speeds, "items")
        self._bar.note(note)


class _WorkerState:
    """How fast a worker is, and its log."""

    def __init__(self, log: progress.WorkerLog | None) -> None:
        self._log, self._item, self._since = log, "", 0.0
        self.done, self._first, self._rest = 0, 0.0, 0.0

    def start(self, item: str, content: str) -> None:
        self._item, self._since = item, time.monotonic()
        if self._log is not None:
            self._log.wait(f"{item} starts: {content}")

    def receive(self, event: progress.Event) -> None:
        if self._log is None:
            return
        if isinstance(event, progress.Line):
            self._log.write(event.text)
        elif isinstance(event, progress.Printed):
            self._log.wait(event.text)

    def end(self) -> None:
        seconds = time.monotonic() - self._since
        if self.done:
            self._rest += seconds
        else:
            self._first = seconds
        self.done += 1
        if self._log is not None:
            self._log.write(f"{self._item} done in {clock(seconds)}")

    @property
    def rate(self) -> float | None:
        """Items a second; the first, which the worker starts with, counts where it is the only."""
        if not self.done:
            return None
        return max(self.done - 1, 1) / max(self._rest or self._first, 1e-9)

    def fail(self, error: Exception) -> str | None:
        """Write an error; the path of the log, where it says more than the error."""
        if self._log is None:
            return None
        refused = isinstance(error, InputError) and not isinstance(error, Died)
        text = str(error)
        if not isinstance(error, InputError):  # its notes have the worker's traceback
            text = "".join(traceback.format_exception_only(error)).rstrip()
        self._log.write(f"{self._item} failed: {text}", last=refused)
        return None if refused or not self._log.path.exists() else str(self._log.path)
