"""Stage two: train the LR student on body images and LR faces, against the cached targets.

Neither the teacher, nor HR faces, nor masks are read here; they need not be on disk (but for a
study of `train_student.live_teacher`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from deskpro.cache.errors import CacheError
from deskpro.cache.reader import TargetReader, open_reader
from deskpro.stages.base import device as devices
from deskpro.stages.base import ranks
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar
from deskpro.stages.data.check import check_data
from deskpro.stages.data.index import class_order, read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.data.loader import ImageDataset, images_of, iterate, load
from deskpro.stages.data.overlay import side_by_side
from deskpro.stages.data.sampler import PKSampler
from deskpro.stages.data.views import DrawnViews, StoredViews
from deskpro.stages.losses import attention, cross_entropy, distillation, triplet
from deskpro.stages.losses.agreement import agreement
from deskpro.stages.models.cost import multiply_adds
from deskpro.stages.models.lmbn import HEADS, map_size
from deskpro.stages.models.student import STREAMS, Student
from deskpro.stages.models.warm_start import warm_start
from deskpro.stages.models.weights import ModelInfo, load_teacher, save
from deskpro.stages.targets.provenance import image_differences, option_differences
from deskpro.stages.targets.teachers import CachedTeacher, LiveTeacher
from deskpro.stages.training.checkpoints import Checkpoints
from deskpro.stages.training.distributed import distribute, gather
from deskpro.stages.training.loop import Losses, fit, repeated
from deskpro.stages.training.monitor import open_loggers
from deskpro.stages.training.schedule import default_peak
from deskpro.stages.training.signals import stop_requests

STREAM_IMAGES = {"face": "lr_face", "body": "imgs"}
"""Stream → the kind of image that it sees."""


@dataclass(frozen=True)
class Inputs:
    """cache: the teacher's targets, or None for a student that uses none; teacher: its weights, for
    a student that asks it live; file_index: known images; provenance:
    by name, everything that the student depends on, for checkpoints."""

    cache: Path | None
    teacher: Path
    file_index: Path
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Outputs:
    """student: weights; history: CSV, a row per epoch; checkpoints, tensorboard: folders, of which
    the first is no longer needed once it is recorded that the student is done; replace: checkpoints
    of another recipe may be removed."""

    student: Path
    history: Path
    checkpoints: Path
    tensorboard: Path
    replace: bool = False


def run(options: Options, inputs: Inputs, outputs: Outputs) -> dict[str, object]:
    """Train on the samples of the cache; returns the facts for the summary.

    Started by torchrun, each process trains on its share of every batch's identities.
    """
    device = devices.pick(options.device)
    with ranks.join(device.type) as team:
        return _train(options, inputs, outputs, device, team)


def _train(
    options: Options, inputs: Inputs, outputs: Outputs, device: torch.device, team: ranks.Ranks
) -> dict[str, object]:
    recipe, data = options.train_student, options.data
    streams = STREAMS[options.forward_mode]

    training_set = (
        _from_cache(options, inputs, device) if inputs.cache else _without_targets(options, inputs)
    )
    train, labels, classes = training_set.table, training_set.labels, training_set.classes
    sampler = _sampler(options, training_set, team)
    target_inputs = training_set.teacher.kinds if training_set.teacher else ()
    seen_kinds = [STREAM_IMAGES[stream] for stream in streams]
    kinds = (*seen_kinds, *target_inputs)
    images = ImageDataset(
        train,
        {kind: data.face_size if kind.endswith("face") else data.body_size for kind in kinds},
        training_set.views,
        quick=seen_kinds,
    )
    loader = load(images, sampler, data.workers, device)

    torch.manual_seed(recipe.seed)
    network_options = {"forward_mode": options.forward_mode, **options.student.arguments}
    student = Student(len(classes), **network_options)
    start = options.student.pre_train
    started = warm_start(student, start).facts(start) if start is not None else {}
    shapes = {"face": data.face_size, "body": data.body_size}
    blank = [torch.zeros(1, 3, *shapes[s]) if s in streams else None for s in ("face", "body")]
    cost = multiply_adds(student, *blank)
    student.to(device)
    forward = distribute(student, recipe, device, team)
    row_labels = torch.from_numpy(labels).to(device)
    seen: dict[str, torch.Tensor] = {}  # of the last batch, for images of the attention

    def batches(epoch: int, start: int) -> Iterable[Mapping[str, Any]]:
        sampler.set_epoch(epoch, start)
        return iterate(loader)

    def terms(batch: Mapping[str, Any]) -> Losses:
        shown = {
            stream: images_of(
                batch, STREAM_IMAGES[stream], device, channels_last=recipe.channels_last
            )
            for stream in streams
        }
        output = forward(shown.get("face"), shown.get("body"))
        said = training_set.teacher(batch) if training_set.teacher else {}
        label = row_labels[batch["row"].to(device, non_blocking=True)]

        loss, kd, mse = options.loss, options.kd_loss, options.mse
        alpha = kd.alpha if kd.enable else 0.0
        losses, metrics = {}, {}
        for stream in streams:
            # Distillation takes its share of the face heads' classification (network.md).
            share = 1 - alpha if stream == "face" else 1.0
            losses[f"ce_{stream}"] = (share * loss.cross_entropy) * cross_entropy(
                output.logits[:, student.heads[stream]],
                label,
                label_smoothing=loss.label_smoothing,
            )
            embeddings, known = output.embeddings[:, student.triplet[stream]], label
            if recipe.gather_triplets:
                embeddings, known = gather(embeddings, label, team)
            losses[f"triplet_{stream}"] = loss.triplet * triplet(
                embeddings, known, margin=loss.margin
            )
        if "face" in streams and alpha:
            logits = output.logits[:, student.heads["face"]]
            losses["kd"] = alpha * distillation(logits, said["logits"], temperature=kd.T)
            metrics = agreement(logits, said["logits"], kd.T, HEADS)
        if "body" in streams and mse.mse_weight:
            assert output.attention is not None
            losses["attention"] = mse.mse_weight * attention(output.attention, said["attention"])
            seen["imgs"] = batch["imgs"]
            seen["attention"], seen["target"] = output.attention.detach(), said["attention"]
        return Losses(losses, metrics)

    def attention_image() -> torch.Tensor | None:
        if not seen:
            return None
        few = {name: values[:8].float().cpu() for name, values in seen.items()}
        return side_by_side(few["imgs"].to(torch.uint8), few["attention"], few["target"])

    steps = min(len(sampler) * recipe.epochs, recipe.max_steps or len(sampler) * recipe.epochs)
    checkpoints = Checkpoints(
        outputs.checkpoints, inputs.provenance, options.checkpoints.every, options.checkpoints.keep
    )
    with (
        stop_requests() as stop,
        bar("train-student", steps, "steps") as progress,
        open_loggers(
            outputs.history, outputs.tensorboard, options.tensorboard, attention_image
        ) as loggers,
    ):
        history = fit(
            student,
            batches,
            terms,
            training=recipe,
            peak_lr=recipe.lr or default_peak(options.batchid * options.batchimage),
            device=device,
            bar=progress,
            checkpoints=checkpoints,
            replace=outputs.replace,
            names=lambda batch: train["sample_id"].iloc[batch["row"].tolist()].tolist(),
            stop=stop,
            loggers=loggers,
            special=(_attention_parameters(student), options.mse.spatial_attn_lr),
            team=team,
        )
    info = ModelInfo(
        kind="student",
        network=network_options,
        num_classes=len(classes),
        classes=classes,
        face_size=data.face_size,
        body_size=data.body_size,
    )
    if team.rank == 0:
        save(outputs.student, student, info)
    last = history.rows[-1]
    return {
        "used": f"{len(train)} samples of {len(classes)} identities, from {training_set.source}",
        **({"targets": f"from {training_set.teacher.location}"} if training_set.teacher else {}),
        **repeated(sampler),
        **started,
        "steps": f"{history.steps}, {options.batchid}×{options.batchimage} samples each",
        "last loss": "  ".join(f"{k} {v:.3f}" for k, v in last.items() if _is_loss(k)),
        "size": f"{sum(p.numel() for p in student.parameters()) / 1e6:.2f} M parameters",
        "cost": f"{cost / 1e6:.0f} M multiply-adds a sample",
        "student": outputs.student,
    }


def _is_loss(column: str) -> bool:
    """Whether a column of the history is a loss term or their total."""
    return column.split("_")[0] in ("ce", "triplet", "kd", "attention", "total")


def _sampler(options: Options, training_set: TrainingSet, team: ranks.Ranks) -> PKSampler:
    recipe, found = options.train_student, len(np.unique(training_set.labels))
    if options.batchid % team.size:
        raise InputError(
            f"batchid {options.batchid} can't be shared among {team.size} processes: --set "
            f"batchid={max(options.batchid // team.size, 1) * team.size}"
        )
    if options.batchid // team.size < 2 and not recipe.gather_triplets:
        raise InputError(
            f"batchid {options.batchid} leaves {options.batchid // team.size} identity to each of "
            f"{team.size} processes, and a triplet needs two: --set batchid={2 * team.size} or "
            "--set train_student.gather_triplets=true"
        )
    sampler = PKSampler(
        training_set.labels,
        options.batchid,
        options.batchimage,
        training_set.count,
        recipe.seed,
        team.rank,
        team.size,
    )
    if not len(sampler):
        raise InputError(
            f"{found} training identities make no batch of batchid "
            f"{options.batchid}: --set batchid={found} or less"
        )
    return sampler


def _attention_parameters(student: Student) -> list[torch.nn.Parameter]:
    body = student.nocloth_net
    return [] if body is None or body.spatial_attn is None else [*body.spatial_attn.parameters()]


@dataclass(frozen=True)
class TrainingSet:
    """What a student is taught by.

    table: a row per sample; labels: int64 [N] class indices into `classes`; views: (row, view) →
    float32 [len(View)], of which there are `count` for each sample; teacher: batch → targets of
    its samples and views, if any are used.
    """

    table: pd.DataFrame
    labels: np.ndarray
    classes: list[str]
    views: Callable[[int, int], np.ndarray]
    count: int
    teacher: LiveTeacher | CachedTeacher | None
    source: Path


def _from_cache(options: Options, inputs: Inputs, device: torch.device) -> TrainingSet:
    """The samples and views of the cache, in its order; its teacher needn't be here any more."""
    assert inputs.cache is not None
    reader = open_reader(inputs.cache)
    _require_match(reader, options, inputs)
    table = _checked(options, inputs, "leave-out")  # the cache settled which samples are used
    table = table.set_index("sample_id", drop=False)
    sample_ids = reader.column("sample_id").tolist()
    missing = [sample_id for sample_id in sample_ids if sample_id not in table.index]
    if missing:
        lines = [f"{options.data.root}: {sample_id}" for sample_id in missing[:40]]
        raise InputError(
            f"{inputs.cache}: {len(missing)} of its {len(sample_ids)} samples lack an image:\n  "
            + "\n  ".join(lines)
            + "\nPut them back, or make the cache anew: make teacher-cache FORCE=1"
        )
    table = table.loc[sample_ids].reset_index(drop=True)
    labels, classes = reader.column("label"), reader.fingerprint["classes"]
    if [classes[label] for label in labels] != table["pid"].tolist():
        raise CacheError(
            f"{inputs.cache}: its labels aren't the identities that {options.data_train} reads off "
            "the names of these samples. Set data_train as it was when the cache was made"
        )
    recipe = options.train_student
    stored = reader.column("views")
    views: Callable[[int, int], np.ndarray] = StoredViews(stored)
    count = recipe.views or stored.shape[1]
    if count > stored.shape[1]:
        raise InputError(
            f"train_student.views: {count} is more than the {stored.shape[1]} views of "
            f"{inputs.cache}. Add views to it: make teacher-cache ARGS='--set cache.views={count}'"
        )
    if recipe.fresh_views:
        views, count = DrawnViews(options.views, sample_ids), recipe.epochs
    teacher: LiveTeacher | CachedTeacher | None = None
    if options.uses_targets and not recipe.live_teacher:
        budget = options.cache.memory * 1e9
        teacher = CachedTeacher(reader, device, budget=budget, plain=recipe.fresh_views)
    elif options.uses_targets:
        teacher = LiveTeacher(
            load_teacher(inputs.teacher)[0],
            map_size(options.data.body_size),
            options.cache.precision,
            device,
        )
    return TrainingSet(table, labels, classes, views, count, teacher, inputs.cache)


def _without_targets(options: Options, inputs: Inputs) -> TrainingSet:
    """The training set itself, for a student that uses no targets: the same views, as drawn."""
    table = _checked(options, inputs, options.data.incomplete)
    classes = class_order(table["pid"])
    index = {pid: i for i, pid in enumerate(classes)}
    views = DrawnViews(options.views, table["sample_id"].tolist(), options.cache.plain_view)
    return TrainingSet(
        table,
        table["pid"].map(index).to_numpy(np.int64, copy=True),
        classes,
        StoredViews(views.table(options.cache.views)),
        options.cache.views,
        None,
        options.data.root,
    )


def _checked(options: Options, inputs: Inputs, incomplete: str) -> pd.DataFrame:
    """The training samples that have every image that the student sees."""
    seen = [STREAM_IMAGES[stream] for stream in STREAMS[options.forward_mode]]
    if options.train_student.live_teacher:
        seen += LiveTeacher.kinds
    checked = check_data(
        options.data.root,
        options.data_train,
        splits=("train",),
        needs=("imgs", *(kind for kind in seen if kind != "imgs")),
        incomplete=incomplete,
    ).require()
    return checked.split("train")


def _require_match(reader: TargetReader, options: Options, inputs: Inputs) -> None:
    """The cache must hold what these options, and the images that are here, would give.

    Its teacher, HR faces and masks needn't be here any more; what is here is compared.
    """
    index, _ = read_index(options.data.root, LAYOUTS[options.data_train], ("train",))
    differing = option_differences(reader, options, inputs.teacher)
    differing += image_differences(reader, index, inputs.file_index)
    if differing:
        raise CacheError(
            f"{reader.path}: made otherwise than this recipe and these images say: "
            f"{'; '.join(differing)}. Set that back, or bring the cache up to date: "
            "make teacher-cache FORCE=1"
        )
