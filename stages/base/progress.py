"""Progress and summaries for people: bars on a terminal, now and then a line in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from deskpro.stages.base.distributed import is_main

_SILENT = 20.0
"""Seconds between two lines where there is no terminal."""


def _console() -> Console:
    """Standard error; nowhere in a process that isn't the first of several."""
    return Console(stderr=True, highlight=False, quiet=not is_main())


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        return Text(f"{task.speed:.1f} {unit}/s" if task.speed else f"– {unit}/s")


class Bar:
    """The progress of one piece of work; made by `bar`."""

    def __init__(self, title: str, total: int, unit: str, progress: Progress | None) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._progress = progress
        self._task = progress.add_task(title, total=total, unit=unit, note="") if progress else None
        self._done, self._note = 0, ""
        self._started = self._spoke = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""
        self.reach(self._done + count)

    def reach(self, done: int, total: int | None = None) -> None:
        """`done` units in all are done."""
        self._done, self._total = done, total or self._total
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=self._total)
        elif time.monotonic() - self._spoke > _SILENT:
            self._speak()

    def note(self, text: str) -> None:
        """Show a few words beside the bar."""
        self._note = text
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, note=text)

    def _speak(self) -> None:
        self._spoke = time.monotonic()
        rate = self._done / max(self._spoke - self._started, 1e-9)
        left = (self._total - self._done) / rate if rate else 0
        _console().print(
            f"{self._title}: {self._done}/{self._total} {self._unit}, {rate:.1f}/s, "
            f"{left:.0f} s left  {self._note}",
            soft_wrap=True,
        )


@contextmanager
def bar(title: str, total: int, unit: str) -> Iterator[Bar]:
    """A progress bar with rate and time left while the block runs."""
    console = _console()
    if not console.is_terminal:
        yield Bar(title, total, unit, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(title, total, unit, progress)


def log(text: str) -> None:
    """One line to the person who waits."""
    _console().print(text, markup=False, soft_wrap=True)


def summary(title: str, facts: Mapping[str, object]) -> None:
    """What a stage did: what, how much, how long, where."""
    width = max(len(name) for name in facts)
    log(f"{title}")
    for name, fact in facts.items():
        log(f"  {name:<{width}}  {fact}")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output."""
    grid = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        grid.add_row(*row)
    Console(highlight=False).print(grid)
