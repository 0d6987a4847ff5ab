"""Stage one: run the teacher once over HR faces and masks, and cache what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from deskpro.cache.lock import require_unlocked
from deskpro.cache.reader import ZarrReader
from deskpro.cache.schema import Column, Schema
from deskpro.cache.writer import TargetWriter, Team
from deskpro.stages.base import device as devices
from deskpro.stages.base import ranks
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar
from deskpro.stages.data.check import check_data
from deskpro.stages.data.index import class_order, read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.data.loader import ImageDataset, MultiViewDataset, iterate, load
from deskpro.stages.data.views import DrawnViews, StoredViews, View
from deskpro.stages.models.lmbn import HEADS, map_size
from deskpro.stages.models.weights import ModelInfo, load_teacher
from deskpro.stages.targets.provenance import (
    HASHED,
    hash_columns,
    image_differences,
    option_differences,
    recipe_fingerprint,
    teacher_fingerprint,
)
from deskpro.stages.targets.teachers import LiveTeacher, decode, divergence, encode, stored_fields

BATCH_VIEWS = 1024
"""Looks that a loaded batch holds at most: samples × views."""


@dataclass(frozen=True)
class Inputs:
    """teacher: its weights; file_index: known images."""

    teacher: Path
    file_index: Path


@dataclass(frozen=True)
class Outputs:
    """cache: the zarr store; left_out: CSV of samples not used.

    replace: an unfinished cache that was begun otherwise may be given up, but for what is the same.
    """

    cache: Path
    left_out: Path
    replace: bool = False


def run(options: Options, inputs: Inputs, outputs: Outputs) -> dict[str, object]:
    """Cache logits and attention of every view of every complete training sample.

    An unfinished cache of the same fingerprint is continued; blocks of an earlier one that would
    come out the same are taken over. Started by torchrun, each process computes blocks of its own.
    Returns the facts for the summary.
    """
    device = devices.pick(options.device)
    data, settings = options.data, options.cache

    teacher, info = load_teacher(inputs.teacher)
    with ranks.join() as team:
        if team.rank == 0:
            require_unlocked(outputs.cache)
        with (
            team.rank_zero_first()
        ):  # it decodes and hashes; the others find that in the file index
            checked = check_data(
                data.root,
                options.data_train,
                incomplete=data.incomplete,
            ).require()
            train = checked.split("train")
            hashes = hash_columns(train, inputs.file_index)
        classes = _classes(train, info, inputs.teacher)
        drawn = DrawnViews(options.views, train["sample_id"].tolist(), settings.plain_view)
        views = drawn.table(settings.views)
        attention_size = map_size(data.body_size)
        writer = TargetWriter(
            outputs.cache,
            Schema(
                len(train),
                settings.views,
                settings.block,
                stored_fields(len(classes), attention_size, settings.logits_dtype),
            ),
            _columns(train, classes, views, hashes),
            {
                **teacher_fingerprint(inputs.teacher),
                "classes": classes,
                **recipe_fingerprint(options),
            },
            replace=outputs.replace,
            reuse=settings.reuse,
            team=Team(team.rank, team.size, team.share, team.gather),
        )
        images = ImageDataset(
            train, {"hr_face": data.face_size, "mask": data.body_size}, StoredViews(views)
        )
        teach = LiveTeacher(teacher, attention_size, settings.precision, device)
        try:
            _fill(writer, images, teach, options, device)
            writer.seal()
        finally:
            writer.close()
    facts = {
        **checked.facts(outputs.left_out),
        "views": f"{settings.views} of each sample" + settings.plain_view * ", the first plain",
    }
    if writer.there:
        total = writer.schema.blocks * writer.schema.views
        facts["continued"] = f"{writer.there} of {total} (block, view) were there"
    return facts | {"cache": f"{outputs.cache} ({_megabytes(outputs.cache):.1f} MB)"}


def differences(options: Options, inputs: Inputs, cache: Path) -> list[str]:
    """How options, teacher and images that are here differ from those of a finished cache.

    More views than it has are no difference: they would be added.
    """
    lines = option_differences(ZarrReader(cache), options, inputs.teacher, may_grow=True)
    return lines + changed_images(options, cache, inputs.file_index)


def changed_images(options: Options, cache: Path, file_index: Path) -> list[str]:
    """How the training images that are here differ from those of a cache, naming samples."""
    index, _ = read_index(options.data.root, LAYOUTS[options.data_train], ("train",))
    return image_differences(ZarrReader(cache), index, file_index)


def _fill(
    writer: TargetWriter,
    images: ImageDataset,
    teach: LiveTeacher,
    options: Options,
    device: torch.device,
) -> None:
    """Compute this process's blocks; each is written while the next is computed.

    A batch is some samples of a block under one view: its targets are the same bytes whichever
    other views, blocks or processes there are. A sample's files are decoded once for up to
    `LOOKS / cache.batch` views, so that memory is bounded.
    """
    schema, size = writer.schema, options.cache.batch
    plan = [
        (block, views, rows)
        for block in writer.mine
        for views in batched(writer.views(block), max(BATCH_VIEWS // size, 1))
        for rows in batched(range(*schema.rows(block).indices(schema.samples)), size)
    ]
    batches = [[(row, views) for row in rows] for _, views, rows in plan]
    # One batch ahead per worker: a batch holds several views of its samples.
    loader = iterate(load(MultiViewDataset(images), batches, options.data.workers, device, ahead=1))
    total = sum(len(views) * len(rows) for _, views, rows in plan)
    writing: Future[None] | None = None
    with bar("teacher-cache", total, "views") as progress, ThreadPoolExecutor(1) as background:
        for block, parts in groupby(zip(plan, loader, strict=True), lambda part: part[0][0]):
            first, missing = schema.rows(block).start, writer.views(block)
            shape = (schema.rows(block).stop - first, len(missing))
            targets = {n: np.empty((*shape, *f.shape), f.dtype) for n, f in schema.fields.items()}
            kl = np.zeros((len(missing), len(HEADS)))
            for (_, views, rows), batch in parts:
                part = slice(rows[0] - first, rows[-1] + 1 - first)
                for i, view in enumerate(views):
                    rendered = {
                        kind: batch[kind][:, i] for kind in ("hr_face", "mask", "view_params")
                    }
                    said, at = teach(rendered), missing.index(view)
                    stored = encode(said, options.cache.logits_dtype)
                    stored["pixels"] = batch["pixels"][:, i].numpy().view(np.uint64)
                    for name, values in stored.items():
                        targets[name][part, at] = values
                    if options.cache.logits_dtype != "float16":
                        kl[at] += _lost(said["logits"], stored, options.kd_loss.T)
                    progress.advance(len(rows))
            facts = {}
            if options.cache.logits_dtype != "float16":
                facts = {
                    view: {"T": options.kd_loss.T, "kl": [float(f"{k:.6g}") for k in each]}
                    for view, each in zip(missing, kl / shape[0], strict=True)
                }
            if writing is not None:
                writing.result()  # a full disk is noticed here
            writing = background.submit(writer.write, block, targets, facts)
        if writing is not None:
            writing.result()


def _lost(logits: torch.Tensor, stored: dict[str, np.ndarray], temperature: float) -> np.ndarray:
    """What storing cost against float16: KL divergence by head, summed over the batch."""
    tensors = {name: torch.from_numpy(v) for name, v in stored.items() if name != "pixels"}
    kept = decode(tensors)["logits"]
    return divergence(logits.half().cpu(), kept, temperature).numpy()


def batched(things: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The things in order, `size` at a time."""
    for start in range(0, len(things), size):
        yield things[start : start + size]


def _columns(
    train: pd.DataFrame, classes: list[str], views: np.ndarray, hashes: dict[str, np.ndarray]
) -> dict[str, Column]:
    """What is known of each sample before the teacher has spoken."""
    index = {pid: i for i, pid in enumerate(classes)}
    return {
        "sample_id": Column(
            train["sample_id"].to_numpy(object),
            ("sample",),
            description="path of the body image below its folder",
        ),
        "label": Column(
            train["pid"].map(index).to_numpy(np.int64),
            ("sample",),
            description="class index, into the fingerprint's classes",
        ),
        "views": Column(
            views,
            ("sample", "view", "parameter"),
            description="fractions of the image: " + ", ".join(View._fields),
        ),
        **{
            name: Column(
                values, ("sample", "byte"), description=f"SHA-256 of the {HASHED[name]} file"
            )
            for name, values in hashes.items()
        },
    }


def _classes(train: pd.DataFrame, teacher: ModelInfo, path: Path) -> list[str]:
    """The class order of the teacher's logits; it can't say anything about people it doesn't know.

    A published checkpoint doesn't name its identities: theirs is then the order of the training
    set, which must have as many.
    """
    found = class_order(train["pid"])
    if teacher.classes is None:
        if len(found) != teacher.num_classes:
            raise InputError(
                f"{path}: trained on {teacher.num_classes} identities, the training set has "
                f"{len(found)}. Give it the set that the teacher was trained on (data.root)"
            )
        return found
    unknown = sorted(set(found) - set(teacher.classes))
    if unknown:
        raise InputError(
            f"{path}: doesn't know {len(unknown)} of the {len(found)} training identities: "
            f"{', '.join(unknown[:10])}{', …' if len(unknown) > 10 else ''}. Train a teacher on "
            "this set: make train-teacher FORCE=1"
        )
    return teacher.classes


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
