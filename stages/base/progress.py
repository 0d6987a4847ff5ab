"""Progress and summaries for people: bars on a terminal, now and then a line in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deskpro.stages.base.distributed import is_main

_SILENT = 20.0
"""Seconds between two lines where there is no terminal."""


def _console() -> Console:
    """Standard error; nowhere in a process that isn't the first of several."""
    return Console(stderr=True, highlight=False, quiet=not is_main())


class _Rate(progress.ProgressColumn):
    def render(self, task: progress.Task) -> Text:
        unit = task.fields["unit"]
        return Text(f"{task.speed:.1f} {unit}/s" if task.speed else f"– {unit}/s")


class Bar:
    """The progress of one piece of work; made by `bar`."""

    def __init__(self, shown: progress.Progress, title: str, total: int, unit: str) -> None:
        self._progress = shown
        self._task = shown.add_task(title, total=total, unit=unit, note="")
        self._logged = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""
        self._update(advance=count)

    def reach(self, done: int, total: int | None = None) -> None:
        """`done` units in all are done."""
        self._update(completed=done, total=total)

    def note(self, text: str) -> None:
        """Show a few words beside the bar."""
        self._update(note=text)

    def _update(self, **changes: Any) -> None:
        self._progress.update(self._task, **changes)
        if self._progress.disable and time.monotonic() - self._logged > _SILENT:
            self._logged = time.monotonic()
            [task] = self._progress.tasks
            rate = task.completed / max(task.elapsed or 0, 1e-9)
            left = (task.remaining or 0) / rate if rate else 0
            log(
                f"{task.description}: {task.completed:.0f}/{task.total:.0f} {task.fields['unit']}, "
                f"{rate:.1f}/s, {left:.0f} s left  {task.fields['note']}"
            )


@contextmanager
def bar(title: str, total: int, unit: str) -> Iterator[Bar]:
    """A progress bar with rate and time left while the block runs."""
    console = _console()
    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        _Rate(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as shown:
        yield Bar(shown, title, total, unit)


def log(text: str) -> None:
    """One line to the person who waits."""
    _console().print(text, markup=False, soft_wrap=True)


def summary(title: str, facts: Mapping[str, object]) -> None:
    """What a stage did: what, how much, how long, where."""
    width = max(map(len, facts))
    log("\n".join([title, *(f"  {name:<{width}}  {fact}" for name, fact in facts.items())]))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on standard output."""
    grid = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        grid.add_row(*row)
    Console(highlight=False).print(grid)
