"""Targets of blocks of samples, computed in any process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from deskpro.stages.base import distributed
from deskpro.stages.base.options import Options
from deskpro.stages.data.loader import ImageDataset, MultiViewDataset, batched, iterate, load
from deskpro.stages.data.views import StoredViews
from deskpro.stages.targets import provenance
from deskpro.stages.targets.kinds import Arrays, Settings, Target, all_targets, stored_fields
from deskpro.stages.targets.teachers import LiveTeacher

BATCH_VIEWS = 1024
"""Samples × views in a loaded batch, at most."""


class Item(NamedTuple):
    """Some views of a block's samples, for the targets that lack them: of one teacher, and of
    none."""

    block: int
    rows: range
    views: tuple[int, ...]
    names: tuple[str, ...]


class ItemTarget:
    """A target of an item.

    arrays: by field, [rows, views, …]; facts: by view and name, means over the samples, [parts].
    """

    def __init__(self, target: Target, item: Item, settings: Settings, valid: np.ndarray) -> None:
        """valid: bool [rows], which of the item's samples have the target; facts are of them."""
        self.target, self.item, self.settings, self.valid = target, item, settings, valid
        shape = len(item.rows), len(item.views)
        fields = stored_fields(target, settings)
        self.arrays: Arrays = {n: np.empty((*shape, *f.shape), f.dtype) for n, f in fields.items()}
        self.facts: dict[int, dict[str, np.ndarray]] = {view: {} for view in item.views}

    def add(self, rows: Sequence[int], view: int, value: torch.Tensor, pixels: np.ndarray) -> None:
        """Put in the values of neighbouring rows under one view."""
        stored = self.target.encode(value, self.settings)
        first, column = rows[0] - self.item.rows.start, self.item.views.index(view)
        here = slice(first, first + len(rows))
        for field, values in {**stored, "pixels": pixels}.items():
            self.arrays[field][here, column] = values
        has = self.valid[here]
        known = {field: values[has] for field, values in stored.items()}
        lost = self.target.lost(value[torch.from_numpy(has)], known, self.settings)
        for fact, sums in lost.items():
            means = self.facts[view]
            means[fact] = means.get(fact, 0.0) + sums / max(int(self.valid.sum()), 1)


class Worker:
    """Computes items. Made from plain values, so that it can run in any process."""

    def __init__(
        self, options: Options, weights: Path, table: pd.DataFrame, views: np.ndarray
    ) -> None:
        """table: the training samples; views: theirs, float32 [N, V, len(View)]."""
        self.options, self.table = options, table
        self.views = StoredViews(views)
        self.device = distributed.pick_device(options.device)
        self.targets = all_targets(options)
        self.files = provenance.TeacherFiles(options, weights)
        self._teacher: tuple[tuple[str, ...], LiveTeacher] | None = None

    def __call__(self, item: Item) -> dict[str, ItemTarget]:
        """The results of one item, by target."""
        return next(self.run([item]))

    def run(
        self, items: Iterable[Item], advance: Callable[[int], None] = lambda views: None
    ) -> Iterator[dict[str, ItemTarget]]:
        """The results of items in their order; images are loaded ahead, also of the next item.

        A batch is some samples of a block under one view: its targets are the same bytes whichever
        other views, blocks or processes there are. A sample's files are decoded once for up to
        `BATCH_VIEWS / cache.batch` views, which bounds the memory.
        """
        for names, group in groupby(items, lambda item: item.names):
            yield from self._run(self._open(names), [*group], advance)

    def _open(self, names: tuple[str, ...]) -> LiveTeacher:
        """What computes some targets; one is in memory at a time."""
        if self._teacher is None or self._teacher[0] != names:
            self._teacher = None
            targets = {name: self.targets[name] for name in names}
            self._teacher = names, LiveTeacher.load(self.files, targets, self.device)
        return self._teacher[1]

    def _run(
        self, teacher: LiveTeacher, items: Sequence[Item], advance: Callable[[int], None]
    ) -> Iterator[dict[str, ItemTarget]]:
        size, settings = self.options.cache.batch, teacher.settings
        plan = [
            (item, views, rows)
            for item in items
            for views in batched(item.views, max(BATCH_VIEWS // size, 1))
            for rows in batched(item.rows, size)
        ]
        sizes = {kind: settings.size(kind) for kind in teacher.sees}
        images = MultiViewDataset(
            ImageDataset(self.table, sizes, self.views),
            {name: target.sees for name, target in teacher.targets.items()},
        )
        batches = [[(row, views) for row in rows] for _, views, rows in plan]
        # One batch ahead per loader process: a batch holds several views of its samples.
        loader = load(images, batches, self.options.data.workers, self.device, ahead=1)
        parts = zip(plan, iterate(loader), strict=True)
        for item, group in groupby(parts, lambda part: part[0][0]):
            rows_of_item = self.table.iloc[item.rows.start : item.rows.stop]
            results = {
                name: ItemTarget(target, item, settings, provenance.valid(rows_of_item, target))
                for name, target in teacher.targets.items()
            }
            for (_, views, rows), batch in group:
                for i, view in enumerate(views):
                    seen = {kind: batch[kind][:, i] for kind in (*sizes, "view_params")}
                    for name, value in teacher(seen).items():
                        pixels = batch["pixels"][name][:, i].numpy().view(np.uint64)
                        results[name].add(rows, view, value, pixels)
                advance(len(rows) * len(views))
            yield results
