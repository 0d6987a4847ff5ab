"""What a command tells people: lines, tables and bars, on a terminal, in a pipe and in its log.

A terminal shows bars; elsewhere a line now and then says how far the work is. A worker process
shows nothing: it sends lines and the state of bars to its driver, which alone prints.
"""

from __future__ import annotations

import io
import logging
import math
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from rich.console import Console
from rich.progress import TaskID
from rich.table import Table
from rich.text import Text

from deskpro.stages.base.display import Display, Note
from deskpro.stages.base.distributed import is_main
from deskpro.stages.base.log_file import LogFile, WorkerLog, printed

_SILENT, _SILENT_FILE = 8.0, 60.0
"""Seconds without a line after which one says how far the work is: in a pipe; in a log alone."""
_BEAT = 0.5
"""Seconds between two looks at that, and between two messages about a bar to a driver."""
WARNING, REFUSAL = "yellow", "red"


class Line(NamedTuple):
    """A line that a worker has for its driver."""

    text: str
    style: str = ""


class BarState(NamedTuple):
    """The state of a worker's bar."""

    title: str
    done: float
    total: float | None
    unit: str


class Printed(NamedTuple):
    """What a worker's libraries print; it goes to the worker's log alone."""

    text: str


Event = Line | BarState | Printed
Tell = Callable[[Any], object]


class _Output:
    """Where lines and bars of this process go."""

    def __init__(
        self,
        *,
        shown: bool = True,
        file: LogFile | None = None,
        lines: Tell | None = None,
        steps: Tell | None = None,
    ) -> None:
        """
        Args:
            shown: on standard error.
            file: the log.
            lines: gets every line.
            steps: gets the state of every bar.
        """
        self.shown, self.file, self.lines, self.steps = shown, file, lines, steps
        self.display: Display | None = None
        self.bars: list[Bar] = []
        self._lock = threading.RLock()
        self._last = self._sent = -math.inf

    def write(self, text: str, style: str = "") -> None:
        """A line, or several."""
        with self._lock:
            self._last = time.monotonic()
            if self.file is not None:
                self.file.write(text)
            if self.shown:
                self.print(Text(text, style))
        if self.lines is not None:
            self.lines(Line(text, style))

    def print(self, text: Text) -> None:
        """On standard error alone, above the bars."""
        console = self.display.console if self.display else _console(sys.stderr)
        console.print(text, soft_wrap=True)

    def write_table(self, table: Table) -> None:
        """A table on standard output, and as text in the log."""
        with self._lock:
            self._last = time.monotonic()
            if self.file is not None:
                paper = _console(io.StringIO(), width=160)
                with paper.capture() as text:
                    paper.print(table)
                self.file.write(text.get())
            if self.shown:
                if self.display is not None:
                    self.display.stop()  # standard output may be the same terminal
                _console(sys.stdout).print(table)
                if self.display is not None:
                    self.display.start()

    def tell(self, seconds: float = 0.0) -> None:
        """Send what is under way, unless that was sent less than so many seconds ago."""
        tasks = self.display.tasks if self.display else []
        if self.steps is None or not tasks or time.monotonic() - self._sent < seconds:
            return
        self._sent, task = time.monotonic(), tasks[-1]
        step = BarState(task.description, task.completed, task.total, task.fields["unit"])
        self.steps(step)

    def how_far(self, seconds: float = 0.0) -> None:
        """Say how far the work is, unless a line came less than so many seconds ago."""
        with self._lock:
            silent, display = time.monotonic() - self._last, self.display
            text = display.describe() if display is not None else ""  # the work ends meanwhile
            if display is None or not text or not is_main() or silent < seconds:
                return
            self._last = time.monotonic()
            if self.file is not None:
                self.file.write(text)
            if self.shown and display.disable:
                self.print(Text(text))

    @contextmanager
    def displayed(self) -> Iterator[Display]:
        """The display of what is under way; opened by whoever comes first.

        The first line comes in half the time, as a process has been silent since it was started.
        """
        if self.display is not None:
            yield self.display
            return
        console, end = _console(sys.stderr), threading.Event()
        live = self.shown and is_main() and sys.stderr.isatty() and not console.is_dumb_terminal
        beat = threading.Thread(target=self._beat, args=(end, live), daemon=True)
        try:
            with Display(console, live) as self.display:
                self._last = max(self._last, time.monotonic() - _SILENT / 2)
                beat.start()
                yield self.display
        finally:
            self.display = None
            end.set()
            if beat.is_alive():
                beat.join()

    def _beat(self, end: threading.Event, live: bool) -> None:
        silent = _SILENT if self.shown and not live else _SILENT_FILE
        while not end.wait(min(_BEAT, silent / 2)):
            with suppress(OSError):  # the work meets it at its own files
                self.how_far(silent)


def _console(file: IO[str], width: int | None = None) -> Console:
    """Text is written as it is: names may have rich's brackets, or the colons of an emoji."""
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


_outputs = [_Output()]
"""The last is used; the others are used again when it ends."""


@contextmanager
def _through(output: _Output) -> Iterator[None]:
    _outputs.append(output)
    try:
        yield
    finally:
        _outputs.pop()


class _Warnings(logging.Handler):
    """Warnings that code without access to this module gives to `logging`."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def begin() -> None:
    """A command begins: it has no log yet."""
    _outputs[:] = [_Output()]
    logging.getLogger("deskpro").handlers[:] = [_Warnings(logging.WARNING)]


def log_to(folder: Path) -> None:
    """What the command prints from now on also goes to the log of its run folder."""
    file = _outputs[-1].file = LogFile(folder, warn)
    file.wait(f"$ {shlex.join(['deskpro', *sys.argv[1:]])}")


@contextmanager
def forwarded(tell: Tell) -> Iterator[None]:
    """While the block runs, as a worker does, lines and bars are sent to the driver: events."""
    outer = _outputs[-1]

    def send(event: Event) -> None:
        with _through(outer):
            tell(event)

    with _through(_Output(shown=False, lines=send, steps=send)):
        yield


@contextmanager
def captured(folder: Path) -> Iterator[None]:
    """While the block runs, all it prints goes to the log of a run folder alone.

    Whoever listens still gets its bars.
    """
    file = LogFile(folder, lambda problem: None)
    output = _Output(shown=False, file=file, steps=_outputs[-1].steps)
    with _through(output), printed(file.write):
        try:
            yield
        except Exception as error:
            with suppress(OSError):
                file.write(f"failed: {error or type(error).__name__}")
            raise


class Bar:
    """The progress of one piece of work; made by `bar`."""

    def __init__(self, output: _Output, display: Display, number: TaskID, title: str) -> None:
        self._output, self._display, self._number = output, display, number
        self.title = title
        self._reported = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""
        self._update(advance=count)

    def reach(self, done: float, total: float | None = None) -> None:
        """`done` units in all are done."""
        self._update(completed=done, total=total)

    def restart(self, done: float) -> None:
        """`done` units are done already: rate and time left are those of what follows."""
        task = self._display.task(self._number)
        self._display.reset(self._number, completed=int(done), **task.fields)

    def become(self, step: BarState) -> None:
        """Show other work than until now: a worker's."""
        task = self._display.task(self._number)
        task.total = step.total
        task.fields["unit"] = step.unit or "steps"
        self.restart(step.done)

    def count(self, done: int) -> None:
        """Show another number than `reach` was given, which may have parts of units in it."""
        self._update(count=done)

    def note(self, note: Note) -> None:
        """Show some values below the bar."""
        self._update(note=note)

    def epoch_ends(self) -> None:
        """Say how far the work is, unless the last epoch said so a moment ago."""
        if time.monotonic() - self._reported >= _SILENT:
            self._reported = time.monotonic()
            self._output.how_far()

    def _update(self, **changes: Any) -> None:
        self._display.update(self._number, **changes)
        done = self._output.steps is None or self._display.task(self._number).finished
        self._output.tell(0 if done else _BEAT)


@contextmanager
def bar(title: str, total: int, unit: str) -> Iterator[Bar]:
    """A progress bar with rate and time left while the block runs; total 0: not known yet."""
    output = _outputs[-1]
    with output.displayed() as display:
        number = display.add(title, total, unit)
        shown = Bar(output, display, number, title)
        output.bars.append(shown)
        output.tell()
        try:
            yield shown
        finally:
            output.bars.remove(shown)
            display.remove_task(number)
            output.tell()


@contextmanager
def working(title: str) -> Iterator[None]:
    """Show that work goes on, also where it has no bar, while the block runs."""
    with bar(title, 0, ""):
        yield


def innermost() -> Bar | None:
    """The bar that was opened last and is under way; None where there is none."""
    bars = _outputs[-1].bars
    return bars[-1] if bars else None


def worker_log(work: str, number: int) -> WorkerLog | None:
    """The log of a worker in the run folder; None where the command has none."""
    file = _outputs[-1].file
    return None if file is None else WorkerLog(file.path.parent, work, number, warn)


def log(text: str, style: str = "") -> None:
    """One line to the person who waits."""
    if is_main():  # of several processes
        _outputs[-1].write(text, style)


def warn(text: str) -> None:
    """A line about something that may be wrong, though the work goes on."""
    log(f"warning: {text}", WARNING)


def refuse(text: str) -> None:
    """The last line of a command that failed, from whichever process fails first."""
    output = _outputs[0]
    with suppress(OSError):
        if output.file is not None:
            output.file.write(text, last=True)
    output.print(Text(text, REFUSAL))


def replay(_: object, event: Event) -> None:
    """Log a worker's line."""
    if isinstance(event, Line):
        log(*event)


def start(title: str, **facts: object) -> None:
    """What a stage is about to do: samples, steps, device, output."""
    log(f"{title} starts: " + ", ".join(f"{name} {fact}" for name, fact in facts.items()))


def summary(title: str, facts: Mapping[str, object]) -> None:
    """What a stage did: what, how much, how long, where."""
    width = max(map(len, facts))
    log("\n".join([title, *(f"  {name:<{width}}  {fact}" for name, fact in facts.items())]))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """A table on standard output. A cell may be rich's Text, with a style; a str is literal."""
    grid = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        grid.add_row(*row)
    _outputs[-1].write_table(grid)
