"""SIGKILL at enumerated points of mapped work: as the k-th item starts or ends, in any process.

Points are counted in a folder, so that they count on over processes, machines that share it, and
repeated commands. A worker passes `start` and `end` of an item, a driver passes `received` and
`written` of a result. Nothing depends on time.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deskpro.stages.base import engine

IN_WORKERS, IN_DRIVER = ("start", "end"), ("received", "written")


def spread(items: int, count: int, *, repeated: bool) -> list[int]:
    """So many of the points of one kind, from the first to the last that is surely reached.

    repeated: each kill adds a point, as the item that it costs is done again.
    """
    last = items - 1 + (count - 1 if repeated else 0)
    return [round(j * last / max(count - 1, 1)) for j in range(count)]


class Points(NamedTuple):
    """Where processes are killed: kind → which of its points, counted from 0."""

    folder: Path
    deadly: Mapping[str, Sequence[int]]
    together: int = 1
    """The first item waits until so many have started, which are then in as many workers."""

    def reach(self, kind: str) -> int:
        """Count a point, and die there where that is wanted; returns its number."""
        for number in itertools.count():
            try:
                (self.folder / f"{kind}-{number}").touch(exist_ok=False)
                break
            except FileExistsError:
                continue
        if number in self.deadly.get(kind, ()):
            (self.folder / f"killed-{kind}-{number}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    @property
    def killed(self) -> int:
        return len([*self.folder.glob("killed-*")])

    @property
    def wanted(self) -> int:
        return sum(map(len, self.deadly.values()))


class Mortal(NamedTuple):
    """A maker of workers that die at points."""

    make_worker: engine.MakeWorker
    points: Points

    def __call__(self) -> Callable[[Any], Any]:
        worker = self.make_worker()

        def work(item: Any) -> Any:
            self.points.reach("start")
            while not (self.points.folder / f"start-{self.points.together - 1}").exists():
                time.sleep(0.01)
            result = worker(item)
            self.points.reach("end")
            return result

        return work


class MapItems(NamedTuple):
    """`engine.map_items` with points; `after` is called with the number of each result."""

    points: Points
    after: Callable[[int], object] | None = None

    def __call__(
        self, launch: Any, make_worker: engine.MakeWorker, *arguments: Any
    ) -> Iterator[tuple[Any, Any]]:
        mortal = Mortal(make_worker, self.points)
        for pair in engine.map_items(launch, mortal, *arguments):
            number = self.points.reach("received")
            if self.after is not None:
                self.after(number)
            yield pair
            self.points.reach("written")


PLACES = {
    "prepare": "deskpro.stages.prepare.map_items",
    "teacher-cache": "deskpro.stages.teacher_cache.map_items",
    "eval": "deskpro.stages.evaluation.feature_store.map_items",
    "sweep": "deskpro.pipeline.students.map_items",
    "ablation": "deskpro.pipeline.students.map_items",
}
"""Command → the name by which its module knows `map_items`."""
