"""What can be seen of a training under way: its history as CSV, curves and images."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from deskpro.cache.files import write_aside, writing
from deskpro.stages.base.distributed import is_main
from deskpro.stages.base.training_options import TensorBoard

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Image = Callable[[], torch.Tensor | None]
"""Gives an image of the last batch, uint8 [3, H, W], or None."""


@dataclass
class History:
    """Steps taken; a row per epoch: epoch (from 1), lr, losses, total, metrics, images_per_s."""

    steps: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)


class Logger:
    """Follows a training; no result depends on it."""

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """The losses, total and metrics of a step, in the order of steps."""

    def epoch(self, history: History) -> None:
        """An epoch has ended."""

    def flush(self) -> None:
        """A checkpoint is about to be written: what was logged so far must stay."""


class HistoryFile(Logger):
    """Keeps a CSV with a row per epoch up to date."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def epoch(self, history: History) -> None:
        with write_aside(self.path) as aside, aside.open("w", newline="") as file:
            pd.DataFrame(history.rows).to_csv(file, index=False)


class Curves(Logger):
    """Scalars and images for TensorBoard, in a folder of event files.

    A training from step 1 removes what an earlier one left there; a resumed one hides what was
    written after its checkpoint.
    """

    def __init__(self, folder: Path, options: TensorBoard, image: Image) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.options, self.image = folder, options, image
        self._make = SummaryWriter
        self._writer: SummaryWriter | None = None

    def step(self, step: int, values: Mapping[str, float]) -> None:
        with writing(self.folder):
            writer = self._open(step)
            if step % self.options.every == 0:
                for name, value in values.items():
                    writer.add_scalar(f"step/{name}", value, step)

    def epoch(self, history: History) -> None:
        row, due = history.rows[-1], len(history.rows) % self.options.overlays == 0
        image = self.image() if due else None
        with writing(self.folder):
            writer = self._open(history.steps + 1)
            for name, value in row.items():
                writer.add_scalar(f"epoch/{name}", value, int(row["epoch"]))
            if image is not None:
                writer.add_image("body, student, target", image, history.steps)

    def flush(self) -> None:
        if self._writer is not None:
            with writing(self.folder):
                self._writer.flush()

    def _open(self, step: int) -> SummaryWriter:
        if self._writer is None:
            if step == 1:
                shutil.rmtree(self.folder, ignore_errors=True)
            # Event files are read in the order of the second in their names. One of a clock that is
            # ahead is not waited for.
            newest = max((p.stat().st_mtime for p in self.folder.glob("events*")), default=0.0)
            while int(time.time()) == int(newest):
                time.sleep(0.05)
            self._writer = self._make(str(self.folder), purge_step=step)
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            with writing(self.folder):
                self._writer.close()


@contextmanager
def open_loggers(
    history: Path, folder: Path, options: TensorBoard, image: Image
) -> Iterator[list[Logger]]:
    """The history file, and TensorBoard if it is on; of several ranks only the main one logs."""
    if not is_main():
        yield []
        return
    curves = Curves(folder, options, image) if options.enable else None
    try:
        yield [HistoryFile(history), *([curves] if curves else [])]
    finally:
        if curves is not None:
            curves.close()
