"""Ask the teacher again: does the cache say what it says, of exactly these pixels?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deskpro.cache.reader import TargetReader, open_reader
from deskpro.stages.base import device as devices
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar
from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.data.loader import ImageDataset, MultiViewDataset, iterate, load
from deskpro.stages.data.views import StoredViews
from deskpro.stages.models.lmbn import HEADS, map_size
from deskpro.stages.models.weights import load_teacher
from deskpro.stages.targets.provenance import image_differences, option_differences
from deskpro.stages.targets.teachers import LiveTeacher, decode, encode, stored_fields

TOLERANCE = {"float32": 2e-3, "bfloat16": 3e-2, "float16": 5e-3}
"""How far a logit asked anew may be from the stored one, by precision of the teacher, as a share of
the largest logit of its head: rounding, another batch, another device. int8 adds a step."""


@dataclass(frozen=True)
class Inputs:
    """cache: a finished store; teacher: its weights; file_index: which images were checked."""

    cache: Path
    teacher: Path
    file_index: Path


@dataclass(frozen=True)
class Report:
    """facts for the summary; differences: a line each, none where the cache is what it says."""

    facts: dict[str, object]
    differences: list[str]


def run(options: Options, inputs: Inputs, samples: int, seed: int) -> Report:
    """Run the teacher over `samples` (sample, view), drawn with `seed`, and compare."""
    device = devices.pick(options.device)
    reader = open_reader(inputs.cache)
    data = options.data
    if not inputs.teacher.is_file():
        raise InputError(f"{inputs.teacher}: the teacher isn't here any more; an audit asks it")
    index, _ = read_index(data.root, LAYOUTS[options.data_train], ("train",))
    found = option_differences(reader, options, inputs.teacher)
    found += image_differences(reader, index, inputs.file_index)

    teacher, info = load_teacher(inputs.teacher)
    wanted = stored_fields(info.num_classes, map_size(data.body_size), options.cache.logits_dtype)
    if wanted != reader.schema.fields:
        found.append("the targets would have other shapes or types: nothing was asked")
        return Report({"asked anew": "nothing", "differences": len(found)}, found)

    pairs = _draw(reader, samples, seed)
    sample_ids = reader.column("sample_id").tolist()
    here = index.dropna(subset=["hr_face", "mask"]).set_index("sample_id", drop=False)
    known = [(row, view) for row, view in pairs if sample_ids[row] in here.index]
    for row in sorted({row for row, _ in pairs} - {row for row, _ in known}):
        found.append(f"{sample_ids[row]}: its HR face or mask isn't here")
    table = here.reindex(sample_ids)
    images = ImageDataset(
        table,
        {"hr_face": data.face_size, "mask": data.body_size},
        StoredViews(reader.column("views")),
    )
    teach = LiveTeacher(
        teacher,
        map_size(data.body_size),
        options.cache.precision,
        device,
    )
    batches = [[(row, (view,)) for row, view in part] for part in _batches(known, options)]
    largest = 0.0
    with bar("audit", len(known), "views") as progress:
        loader = iterate(load(MultiViewDataset(images), batches, data.workers, device))
        for batch, part in zip(loader, batches, strict=True):
            said = teach({kind: batch[kind][:, 0] for kind in ("hr_face", "mask", "view_params")})
            asked = encode(said, options.cache.logits_dtype)
            asked["pixels"] = batch["pixels"][:, 0].numpy().view(np.uint64)
            rows, views = [row for row, _ in part], [view for _, (view,) in part]
            lines, gap = _compare(asked, reader.read(rows, views), options)
            largest = max(largest, gap)
            found += [f"{sample_ids[rows[i]]}, view {views[i]}: {line}" for i, line in lines]
            progress.advance(len(part))
    facts: dict[str, object] = {
        "asked anew": f"{len(known)} (sample, view), seed {seed}",
        "logits": f"differ by up to {largest:.1e} of their head's largest, allowed is "
        f"{_allowed(options):.1e}",
        "differences": len(found),
    }
    return Report(facts, found)


def _draw(reader: TargetReader, samples: int, seed: int) -> list[tuple[int, int]]:
    """Distinct (sample, view), sorted; all of them where there are no more."""
    views = reader.schema.views
    total = reader.schema.samples * views
    chosen = np.random.default_rng(seed).choice(total, min(samples, total), replace=False)
    return [divmod(int(place), views) for place in np.sort(chosen)]


def _batches(pairs: list[tuple[int, int]], options: Options) -> list[list[tuple[int, int]]]:
    size = options.cache.batch
    return [
        [pair for _, pair in part]
        for _, part in groupby(enumerate(pairs), lambda numbered: numbered[0] // size)
    ]


def _compare(
    asked: dict[str, np.ndarray], stored: dict[str, np.ndarray], options: Options
) -> tuple[list[tuple[int, str]], float]:
    """(row, what differs), and the largest gap of logits, as a share of their head's largest."""
    lines: list[tuple[int, str]] = []
    for i in np.flatnonzero(asked["pixels"] != stored["pixels"]):
        lines.append((int(i), "its pixels aren't those that the cache speaks of"))
    step = np.abs(asked["attention"].astype(int) - stored["attention"].astype(int))
    for i in np.flatnonzero(step.max(axis=(1, 2, 3)) > 1):
        lines.append((int(i), f"attention differs by {step[i].max()}/255, allowed is 1/255"))

    mine, theirs = (_logits(values) for values in (asked, stored))
    scale = np.abs(mine).max(axis=2).clip(1e-6)
    gap = np.abs(mine - theirs).max(axis=2) / scale
    allowed = _allowed(options)
    for i, head in np.argwhere(~(gap <= allowed)):
        what = f"logits of head {HEADS[head]} differ by {gap[i, head]:.2g} of the largest"
        lines.append((int(i), f"{what}, allowed is {allowed:.2g}"))
    return lines, float(gap.max())


def _allowed(options: Options) -> float:
    step = 1 / 127 if options.cache.logits_dtype == "int8" else 0.0
    return TOLERANCE[options.cache.precision] + step


def _logits(stored: dict[str, Any]) -> np.ndarray:
    tensors = {name: torch.from_numpy(v) for name, v in stored.items() if name != "pixels"}
    return decode(tensors)["logits"].double().numpy()
