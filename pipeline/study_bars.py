"""The bars of a study: one for all of it, one for each part that is under way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from deskpro.stages.base.progress import BarState, Event, bar, log
from deskpro.stages.base.run_folder import RunFolder

_TRAINING = 0.9
"""Part of a student's time that its training takes."""
_RESUMED = 0.05
"""Part with which a training that is first heard of was resumed."""


class Item(Protocol):
    """What is shown of a student, or of a replicate with several."""

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> RunFolder: ...


class StudyBars:
    """Shows what workers tell of their items; this process alone draws."""

    def __init__(self, name: str, count: int, *, of_students: bool = True) -> None:
        """of_students: of which a part is done when its training is; else of replicates."""
        self._all = ExitStack()
        self._whole = self._all.enter_context(
            bar(name, count, "students" if of_students else "replicates")
        )
        self._parts = of_students
        self._running = dict[Path, _Running]()
        self._done = 0

    def __enter__(self) -> StudyBars:
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._running.values():
            each.stack.close()
        self._all.close()

    def starting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each of which is shown from when it is read."""
        for item in items:
            self._running[item.folder.path] = _Running(item.name)
            yield item

    def listen(self, item: Item, event: Event) -> None:
        """Show the bar of an item's stage; count what part of a student's training is done."""
        if isinstance(event, BarState):
            jumped = self._running[item.folder.path].show(event)
            if self._parts:
                self._count(jumped)
        else:
            log(*event)

    def end(self, item: Item) -> None:
        """An item is done, or was already."""
        running = self._running.pop(item.folder.path)
        running.stack.close()
        self._done += 1
        self._count(jumped=not running.part)

    def _count(self, jumped: bool) -> None:
        """jumped: by work of an earlier command, from which the time left cannot be told."""
        parts = sum(each.part for each in self._running.values()) if self._parts else 0
        done = self._done + parts
        (self._whole.restart if jumped else self._whole.reach)(done)
        self._whole.count(self._done)


class _Running:
    """The bar of an item."""

    def __init__(self, name: str) -> None:
        self.stack = ExitStack()
        self.bar = self.stack.enter_context(bar(name, 0, "steps"))
        self.work = "", ""
        self.part = 0.0
        """Of its training and evaluation."""

    def show(self, event: BarState) -> bool:
        """Whether the student's training was resumed."""
        before, work = self.part, (event.title, event.unit)
        changed, self.work = work != self.work, work
        if changed:
            self.bar.become(event)
        else:
            self.bar.reach(event.done, event.total)
        if work != ("train-student", "steps") or not event.total:
            return False
        self.part = _TRAINING * event.done / event.total
        return changed and self.part - before > _RESUMED
