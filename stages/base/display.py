"""Bars as they are shown: a line each on a terminal, or in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, Task, TaskID
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

Note = Mapping[str, str]
"""What is shown beside a bar: name → value."""


class Display(Progress):
    """Everything under way in this process; a live display where `live`, else a plain record.

    A bar is one line, its note stands below. Work whose amount isn't known is a line with the time
    that it has taken, shown while there is no bar.
    """

    def __init__(self, console: Console, live: bool) -> None:
        # Rates are those of the last 1000 changes: slow work changes seldom.
        super().__init__(
            console=console,
            disable=not live,
            transient=True,
            refresh_per_second=4,
            speed_estimate_period=3600,
            redirect_stdout=False,
        )
        self._spinner = Spinner("dots")

    def add(self, title: str, total: int | None, unit: str) -> TaskID:
        """Add a bar; one without a unit is work whose amount isn't known."""
        return self.add_task(title, total=total or None, unit=unit, note={}, count=None)

    def task(self, number: TaskID) -> Task:
        """The bar of a number."""
        return next(task for task in self.tasks if task.id == number)

    def bars(self) -> list[Task]:
        return [task for task in self.tasks if task.fields["unit"]]

    def describe(self) -> str:
        """What is under way, in one line of words."""
        tasks = self.bars() or self.tasks[-1:]
        return "; ".join(map(describe, tasks))

    def get_renderables(self) -> Iterable[RenderableType]:
        bars = self.bars()
        if bars:
            yield _grid(bars, self.console.width)
            for task in bars:
                note: Note = task.fields["note"]
                yield Columns([f"{name} {value}" for name, value in note.items()], padding=(0, 2))
        elif self.tasks:
            task = self.tasks[-1]
            self._spinner.update(text=Text(f"{task.description}  {clock(task.elapsed)}"))
            yield self._spinner


def _grid(bars: Iterable[Task], width: int) -> Table:
    """A line for each bar: title, bar, n/m, rate, time left. The bar takes what room is left."""
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    for _ in range(3):
        grid.add_column(no_wrap=True, justify="right")
    shape = BarColumn(bar_width=None)
    for task in bars:
        cells = ("", "", clock(task.elapsed))
        if task.total is not None:
            cells = (count(task), rate(task), f"{clock(task.time_remaining)} left")
        title = shorten(task.description, max(width // 3, 12))
        grid.add_row(Text(title), shape.render(task), *cells)
    return grid


def shorten(text: str, width: int) -> str:
    """Without its middle where it is too long: names of students differ at their ends."""
    half = width // 2
    return text if len(text) <= width else f"{text[: width - half - 1]}…{text[-half:]}"


def describe(task: Task) -> str:
    """A bar in words."""
    unit, note = task.fields["unit"], task.fields["note"]
    if task.total is None:
        return f"{task.description}: {clock(task.elapsed)} so far"
    left = f"{clock(task.time_remaining)} left"
    parts = [f"{count(task)} {unit}", rate(task), left, *(f"{n} {v}" for n, v in note.items())]
    return f"{task.description}: {', '.join(parts)}"


def count(task: Task) -> str:
    """n/m."""
    done = task.fields["count"]
    return f"{int(task.completed) if done is None else done}/{task.total:.0f}"


def rate(task: Task) -> str:
    """Units per second, or per the time that makes it a number to read."""
    unit, speed = task.fields["unit"], task.speed
    return rates([speed], unit) if speed else f"- {unit}/s"


def rates(speeds: Sequence[float], unit: str, between: str = ", ") -> str:
    """Some rates, given per second, with one unit for all."""
    scales = (("s", 1), ("min", 60))
    name, seconds = next((s for s in scales if min(speeds) * s[1] >= 0.1), ("h", 3600))
    each = [speed * seconds for speed in speeds]
    return f"{between.join(f'{one:.{one < 1000:d}f}' for one in each)} {unit}/{name}"


def clock(seconds: float | None) -> str:
    """m:ss, or h:mm:ss."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
