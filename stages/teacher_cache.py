"""Stage one: run the teacher once over HR faces and masks, and cache what it says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cache.schema import Field, Schema
from cache.writer import TargetWriter
from stages import device as devices
from stages.data import views as view_module
from stages.data.check import check_data
from stages.data.index import class_order
from stages.data.loader import Pictures, batches_in_order, iterate, load
from stages.data.views import DrawnViews, StoredViews
from stages.engine.teaching import LiveTeacher, Targets
from stages.errors import InputError
from stages.files import sha256
from stages.models.lmbn import HEADS, map_size
from stages.models.weights import Description, load_teacher
from stages.options import Options
from stages.progress import bar


@dataclass(frozen=True)
class Inputs:
    """teacher: its weights; memo: file that remembers which pictures were checked."""

    teacher: Path
    memo: Path


@dataclass(frozen=True)
class Outputs:
    """cache: the zarr store; left_out: CSV of samples not used."""

    cache: Path
    left_out: Path


def run(options: Options, inputs: Inputs, outputs: Outputs) -> dict[str, object]:
    """Cache logits and attention of every view of every complete training sample.

    An unfinished cache with the same fingerprint is continued. Returns the facts for the summary.
    """
    device = devices.pick(options.device)
    data, settings = options.data, options.cache

    teacher, described = load_teacher(inputs.teacher)
    checked = check_data(
        data.root, options.data_train, incomplete=data.incomplete, memo=inputs.memo
    ).require()
    train = checked.split("train")
    sample_ids = train["sample_id"].tolist()
    classes = _classes(train, described, inputs.teacher)
    index = {pid: i for i, pid in enumerate(classes)}
    labels = train["pid"].map(index).to_numpy(np.int64)
    views = DrawnViews(options.views, sample_ids, settings.plain_view).table(settings.views)

    attention_size = map_size(data.body_size)
    schema = Schema(
        len(train),
        settings.views,
        settings.block,
        {
            "logits": Field((len(HEADS), len(classes)), "float16", ("head", "class")),
            "attention": Field((1, *attention_size), "uint8", ("channel", "height", "width")),
        },
    )
    writer = TargetWriter(
        outputs.cache,
        schema,
        {"sample_id": np.asarray(sample_ids, object), "label": labels, "views": views},
        _fingerprint(options, inputs.teacher, described, classes, train),
    )

    pending = writer.pending()
    pairs = {block: _pairs(schema, block) for block in pending}
    pictures = Pictures(
        train, {"hr_face": data.face_size, "mask": data.body_size}, StoredViews(views)
    )
    teach = LiveTeacher(teacher, attention_size, settings.precision, device)
    with bar("teacher-cache", sum(map(len, pairs.values())), "views") as progress:
        for block, block_pairs in pairs.items():
            rows = schema.rows(block)
            shape = (rows.stop - rows.start, settings.views)
            logits = np.empty((*shape, *schema.fields["logits"].shape), np.float16)
            attention = np.empty((*shape, *schema.fields["attention"].shape), np.uint8)
            batches = batches_in_order(block_pairs, settings.batch)
            for batch in iterate(load(pictures, batches, data.workers, device)):
                at = (batch["row"].numpy() - rows.start, batch["view"].numpy())
                logits[at], attention[at] = _stored(teach(batch))
                progress.advance(len(batch["row"]))
            writer.write(block, {"logits": logits, "attention": attention})
    writer.seal()
    return {
        **checked.facts(outputs.left_out),
        "views": f"{settings.views} of each sample" + settings.plain_view * ", the first plain",
        "continued": f"{schema.blocks - len(pending)} of {schema.blocks} blocks were there",
        "cache": f"{outputs.cache} ({_megabytes(outputs.cache):.1f} MB)",
    }


def _stored(targets: Targets) -> tuple[np.ndarray, np.ndarray]:
    """Logits float16 [B, 7, C] and attention uint8 [B, 1, h, w], as they are stored."""
    logits, attention = targets["logits"], targets["attention"]
    if not torch.isfinite(logits).all() or logits.abs().max() > torch.finfo(torch.float16).max:
        raise InputError(
            "the teacher's logits are not finite, or too large for float16: these weights are "
            "broken. Train it anew: make train-teacher FORCE=1"
        )
    return logits.half().cpu().numpy(), (attention * 255).round().byte().cpu().numpy()


def _classes(train: pd.DataFrame, teacher: Description, path: Path) -> list[str]:
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


def _fingerprint(
    options: Options, weights: Path, teacher: Description, classes: list[str], train: pd.DataFrame
) -> dict[str, Any]:
    """Everything that the targets depend on, as readable fields."""
    with ThreadPoolExecutor() as pool:
        content = {
            kind: _digest(pool.map(lambda path: sha256(Path(path)), train[kind]))
            for kind in ("hr_face", "mask")
        }
    return {
        "teacher": {"weights": sha256(weights), "network": teacher.network},
        "views": options.views.model_dump(mode="json")
        | {
            "version": view_module.VERSION,
            "count": options.cache.views,
            "plain_view": options.cache.plain_view,
        },
        "samples": _digest(train["sample_id"]),
        "classes": classes,
        "content": content,
        "face_size": list(options.data.face_size),
        "body_size": list(options.data.body_size),
        "precision": options.cache.precision,
    }


def _digest(parts: Iterator[str] | pd.Series) -> str:
    """One SHA-256 over an ordered list of strings."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _pairs(schema: Schema, block: int) -> list[tuple[int, int]]:
    rows = schema.rows(block)
    return [(row, view) for row in range(rows.start, rows.stop) for view in range(schema.views)]


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
