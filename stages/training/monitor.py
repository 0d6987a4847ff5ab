"""What can be seen of a training under way: its history as CSV, curves and images."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deskpro.cache.files import write_aside
from deskpro.stages.base import ranks
from deskpro.stages.base.options import TensorBoard
from deskpro.stages.training.loop import History, Logger

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class HistoryFile:
    """Keeps a CSV with a row per epoch up to date."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Only epochs have rows."""

    def epoch(self, history: History) -> None:
        with write_aside(self.path) as aside:
            history.table().to_csv(aside, index=False)

    def flush(self) -> None:
        """Each row is on disk at once."""


class Curves:
    """Scalars and images for TensorBoard, in a folder of event files.

    A training that begins removes what an earlier one left there; one that goes on hides what was
    written after its checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        options: TensorBoard,
        image: Callable[[], torch.Tensor | None] = lambda: None,
    ) -> None:
        """image: uint8 [3, H, W] of the last batch, or None; asked every few epochs."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.options, self.image = folder, options, image
        self._make = SummaryWriter
        self._writer: SummaryWriter | None = None

    def step(self, step: int, values: Mapping[str, float]) -> None:
        writer = self._open(step)
        if step % self.options.every == 0:
            for name, value in values.items():
                writer.add_scalar(f"step/{name}", value, step)

    def epoch(self, history: History) -> None:
        writer, row = self._open(history.steps + 1), history.rows[-1]
        for name, value in row.items():
            writer.add_scalar(f"epoch/{name}", value, int(row["epoch"]) + 1)
        if len(history.rows) % self.options.overlays == 0:
            image = self.image()
            if image is not None:
                writer.add_image("body, student, target", image, history.steps)

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def _open(self, step: int) -> SummaryWriter:
        if self._writer is None:
            if step == 1:
                shutil.rmtree(self.folder, ignore_errors=True)
            # Event files are read in the order of the second in their names.
            newest = max((p.stat().st_mtime for p in self.folder.glob("events*")), default=0.0)
            while int(time.time()) <= int(newest):
                time.sleep(0.05)
            self._writer = self._make(str(self.folder), purge_step=step)
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@contextmanager
def open_loggers(
    history: Path,
    folder: Path,
    options: TensorBoard,
    image: Callable[[], torch.Tensor | None] = lambda: None,
) -> Iterator[list[Logger]]:
    """Who watches a training: its history file, and TensorBoard if wanted.

    Of several processes only the first watches.
    """
    if ranks.rank() > 0:
        yield []
        return
    curves = Curves(folder, options, image) if options.enable else None
    try:
        yield [HistoryFile(history), *([curves] if curves else [])]
    finally:
        if curves is not None:
            curves.close()
