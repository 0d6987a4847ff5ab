"""Stage one: compute the targets of every view of every training sample, and store them.

One pass over the images fills all groups of targets that lack chunks. The work is a list of items
that a `Worker` computes in any process; this process alone writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from deskpro.cache.file_index import FileIndex
from deskpro.cache.fingerprint import Difference
from deskpro.cache.schema import Column, Schema
from deskpro.cache.store import TargetStore
from deskpro.cache.writer import GroupWriter
from deskpro.stages.base import device as devices
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar
from deskpro.stages.data.check import check_data
from deskpro.stages.data.index import class_order, content_hashes, read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.data.loader import ImageDataset, MultiViewDataset, batched, iterate, load
from deskpro.stages.data.views import DrawnViews, StoredViews, View
from deskpro.stages.models.teacher import Teacher
from deskpro.stages.models.weights import load_teacher, read_metadata
from deskpro.stages.targets import provenance
from deskpro.stages.targets.kinds import TARGETS, Arrays, Settings, stored_fields
from deskpro.stages.targets.teachers import LiveTeacher

BATCH_VIEWS = 1024
"""Samples × views in a loaded batch, at most."""


@dataclass(frozen=True)
class Inputs:
    """teacher: its weights."""

    teacher: Path


@dataclass(frozen=True)
class Outputs:
    """cache: the store; left_out: CSV of samples that are not used; replace: chunks may be lost."""

    cache: Path
    left_out: Path
    replace: bool = False


class Item(NamedTuple):
    """Some views of a block's samples, for the targets that lack them."""

    block: int
    rows: range
    views: tuple[int, ...]
    names: tuple[str, ...]


class Result:
    """One target of an item.

    arrays: by field, [rows, views, …]; facts: by view and name, means over the samples, [parts].
    """

    def __init__(self, name: str, item: Item, settings: Settings) -> None:
        self.name, self.item, self.settings = name, item, settings
        shape = len(item.rows), len(item.views)
        fields = stored_fields(name, settings)
        self.arrays: Arrays = {n: np.empty((*shape, *f.shape), f.dtype) for n, f in fields.items()}
        self.facts: dict[int, dict[str, np.ndarray]] = {view: {} for view in item.views}

    def add(self, rows: Sequence[int], view: int, value: torch.Tensor, pixels: np.ndarray) -> None:
        """Put in the values of neighbouring rows under one view."""
        stored = TARGETS[self.name].encode(value, self.settings)
        at = rows[0] - self.item.rows.start, self.item.views.index(view)
        for field, values in {**stored, "pixels": pixels}.items():
            self.arrays[field][at[0] : at[0] + len(rows), at[1]] = values
        for fact, sums in TARGETS[self.name].loss(value, stored, self.settings).items():
            means = self.facts[view]
            means[fact] = means.get(fact, 0.0) + sums / len(self.item.rows)


class Worker:
    """Computes items. Made from plain values, so that it can run in any process."""

    def __init__(
        self, options: Options, weights: Path, table: pd.DataFrame, views: np.ndarray
    ) -> None:
        """table: the training samples; views: theirs, float32 [N, V, len(View)]."""
        self.options, self.weights, self.table = options, weights, table
        self.views = StoredViews(views)
        self.device = devices.pick(options.device)
        classes = read_metadata(weights, "teacher").num_classes
        self.settings = provenance.settings_of(options, classes)

    @cached_property
    def network(self) -> Teacher:
        return load_teacher(self.weights)[0]

    def __call__(self, item: Item) -> dict[str, Result]:
        """The results of one item, by target."""
        return next(self.run([item]))

    def run(
        self, items: Iterable[Item], advance: Callable[[int], None] = lambda views: None
    ) -> Iterator[dict[str, Result]]:
        """The results of items in their order; images are loaded ahead, also of the next item.

        A batch is some samples of a block under one view: its targets are the same bytes whichever
        other views, blocks or processes there are. A sample's files are decoded once for up to
        `BATCH_VIEWS / cache.batch` views, which bounds the memory.
        """
        for names, group in groupby(items, lambda item: item.names):
            of_teacher = any(TARGETS[name].of_teacher for name in names)
            network = self.network if of_teacher else None
            teacher = LiveTeacher(names, self.settings, network, self.device)
            yield from self._run(teacher, [*group], advance)

    def _run(
        self, teacher: LiveTeacher, items: Sequence[Item], advance: Callable[[int], None]
    ) -> Iterator[dict[str, Result]]:
        size = self.options.cache.batch
        plan = [
            (item, views, rows)
            for item in items
            for views in batched(item.views, max(BATCH_VIEWS // size, 1))
            for rows in batched(item.rows, size)
        ]
        sizes = {kind: self.settings.size(kind) for kind in teacher.sees}
        images = MultiViewDataset(
            ImageDataset(self.table, sizes, self.views),
            {name: target.sees for name, target in teacher.targets.items()},
        )
        batches = [[(row, views) for row in rows] for _, views, rows in plan]
        # One batch ahead per loader process: a batch holds several views of its samples.
        loader = load(images, batches, self.options.data.workers, self.device, ahead=1)
        parts = zip(plan, iterate(loader), strict=True)
        for item, group in groupby(parts, lambda part: part[0][0]):
            results = {name: Result(name, item, self.settings) for name in item.names}
            for (_, views, rows), batch in group:
                for i, view in enumerate(views):
                    seen = {kind: batch[kind][:, i] for kind in (*sizes, "view_params")}
                    for name, value in teacher(seen).items():
                        pixels = batch["pixels"][name][:, i].numpy().view(np.uint64)
                        results[name].add(rows, view, value, pixels)
                advance(len(rows) * len(views))
            yield results


def run(options: Options, inputs: Inputs, outputs: Outputs) -> dict[str, object]:
    """Store every target of every view of every complete training sample.

    Chunks that are there and would come out the same are kept. Returns the facts for the summary.

    Raises:
        InputError: the images or the teacher can't be used.
        CacheError: another process writes the store, or chunks would be lost without `replace`.
    """
    data, settings = options.data, options.cache
    checked = check_data(data.root, options.data_train, incomplete=data.incomplete).require()
    train = checked.split("train")
    classes = _classes(train, inputs.teacher)
    drawn = DrawnViews(options.views, train["sample_id"].tolist(), settings.plain_view)
    views = drawn.table(settings.views)
    columns = _columns(train, classes, views)
    worker = Worker(options, inputs.teacher, train, views)
    teacher = provenance.teacher_fingerprint(inputs.teacher) | {"classes": classes}
    with ExitStack() as stack:
        writers: dict[str, GroupWriter] = {}
        for name, target in TARGETS.items():
            fields = stored_fields(name, worker.settings)
            writer = GroupWriter(
                outputs.cache,
                target.group,
                Schema(len(train), settings.views, settings.block, fields),
                columns,
                provenance.fingerprint(name, options, teacher),
                depends=provenance.columns(name),
                valid=train[list(target.sees)].notna().all(axis=1).to_numpy(),
                replace=outputs.replace,
                reuse=settings.reuse,
                deep=outputs.replace,
            )
            writers[name] = stack.enter_context(writer)
        _fill(writers, worker)
        for writer in writers.values():
            writer.seal()
    total = writer.schema.blocks * settings.views
    return {
        **checked.facts(outputs.left_out),
        "views": f"{settings.views} of each sample" + settings.plain_view * ", the first plain",
        **{
            name: f"{writer.there} of {total} (block, view) were there"
            for name, writer in writers.items()
            if writer.there
        },
        "cache": f"{outputs.cache} ({_megabytes(outputs.cache):.1f} MB)",
    }


def differences(
    options: Options, inputs: Inputs, cache: Path, *, deep: bool = False
) -> list[Difference]:
    """How options, teacher and images that are here differ from those of a finished cache.

    More views than it has, and targets that it has not, are no difference: they would be added.
    """
    found = provenance.option_differences(cache, options, inputs.teacher, TARGETS, may_grow=True)
    return found + changed_images(options, cache, deep=deep)


def changed_images(options: Options, cache: Path, *, deep: bool = False) -> list[Difference]:
    """How the training images that are here differ from those of a cache."""
    index, _ = read_index(options.data.root, LAYOUTS[options.data_train], ("train",))
    return provenance.image_differences(TargetStore(cache), index, TARGETS, FileIndex(), deep=deep)


def _fill(writers: Mapping[str, GroupWriter], worker: Worker) -> None:
    """Compute what the groups lack; each item is written while the next is computed."""
    items = _items(writers)
    total = sum(len(item.rows) * len(item.views) for item in items)
    writing: Future[None] | None = None
    with bar("teacher-cache", total, "views") as progress, ThreadPoolExecutor(1) as background:
        for item, results in zip(items, worker.run(items, progress.advance), strict=True):
            if writing is not None:
                writing.result()  # a full disk is noticed here
            writing = background.submit(_write, writers, item, results)
        if writing is not None:
            writing.result()


def _items(writers: Mapping[str, GroupWriter]) -> list[Item]:
    """What the groups lack: one item for targets of a block that lack the same views."""
    lacking: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, writer in writers.items():
        for block, views in writer.missing.items():
            lacking.setdefault((block, tuple(views)), []).append(name)
    schema = next(iter(writers.values())).schema
    items = [
        Item(block, range(*schema.rows(block).indices(schema.samples)), views, tuple(names))
        for (block, views), names in lacking.items()
    ]
    return sorted(items, key=lambda item: (item.names, item.block))


def _write(writers: Mapping[str, GroupWriter], item: Item, results: Mapping[str, Result]) -> None:
    for name, result in results.items():
        facts = {
            view: {fact: [float(f"{value:.6g}") for value in means] for fact, means in each.items()}
            for view, each in result.facts.items()
        }
        writers[name].write(item.block, result.arrays, facts)


def _columns(train: pd.DataFrame, classes: list[str], views: np.ndarray) -> dict[str, Column]:
    """What is known of each sample before any target is computed."""
    files, position = FileIndex(), {pid: i for i, pid in enumerate(classes)}
    labels = train["pid"].map(position).to_numpy(np.int64)
    fractions = "fractions of the image: " + ", ".join(View._fields)
    columns = {
        "sample_id": Column(
            train["sample_id"].to_numpy(object),
            ("sample",),
            description="path of the body image below its folder",
        ),
        "label": Column(
            labels, ("sample",), description="class index, into the fingerprint's classes"
        ),
        "views": Column(views, ("sample", "view", "parameter"), description=fractions),
    }
    for kind in provenance.kinds_seen(TARGETS):
        hashes = content_hashes(train[kind].tolist(), files)
        text = f"SHA-256 of the {kind} file"
        columns[f"{kind}_sha256"] = Column(hashes, ("sample", "byte"), description=text)
    return columns


def _classes(train: pd.DataFrame, weights: Path) -> list[str]:
    """The class order of the teacher's logits; it must know every identity.

    A published checkpoint doesn't name its identities: theirs is then the order of the training
    set, which must have as many.
    """
    teacher, found = read_metadata(weights, "teacher"), class_order(train["pid"])
    if teacher.classes is None:
        if len(found) != teacher.num_classes:
            raise InputError(
                f"{weights}: trained on {teacher.num_classes} identities, the training set has "
                f"{len(found)}. Set data.root to the set that the teacher was trained on"
            )
        return found
    unknown = sorted(set(found) - set(teacher.classes))
    if unknown:
        raise InputError(
            f"{weights}: doesn't know {len(unknown)} of the {len(found)} training identities: "
            f"{', '.join(unknown[:10])}{', …' if len(unknown) > 10 else ''}. Train a teacher on "
            "this set: make train-teacher FORCE=1"
        )
    return teacher.classes


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
