"""Stage two: train the LR student on body images and LR faces, against the cached targets.

Neither the teacher, nor HR faces, nor masks are read here; they need not be on disk (but for a
study of `train_student.live_teacher`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deskpro.stages.base import distributed
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.losses.terms import active_terms, targets_needed

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import nn

    from deskpro.cache.reader import TargetReader
    from deskpro.stages.models.student import Student
    from deskpro.stages.training.recipe import Streams, Targets, Tensors, TrainingSet

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


@distributed.shared_errors()
def run(options: Options, inputs: Inputs, outputs: Outputs) -> dict[str, object]:
    """Train on the samples of the cache; returns the facts for the summary."""
    import torch

    from deskpro.stages.models.student import Student, multiply_adds
    from deskpro.stages.models.warm_start import warm_start
    from deskpro.stages.training import recipe

    device = distributed.pick_device(options.device)
    data = _from_cache(options, inputs, device) if inputs.cache else _drawn(options, inputs)
    torch.manual_seed(options.train_student.seed)
    arguments = {"forward_mode": options.forward_mode, **options.student.arguments}
    student = Student(len(data.classes), **arguments)
    start = options.student.pre_train
    started = warm_start(student, start).facts(start) if start is not None else {}
    shapes = {"face": options.data.face_size, "body": options.data.body_size}
    blank = [torch.zeros(1, 3, *shapes[s]) if s in options.streams else None for s in shapes]
    cost = multiply_adds(student, *blank)
    attention = [p for name, p in student.named_parameters() if ".spatial_attn." in name]
    setup = recipe.Setup(
        kind="student",
        options=options,
        network=student,
        arguments=arguments,
        data=data,
        device=device,
        images={stream: STREAM_IMAGES[stream] for stream in options.streams},
        call=_streams(student),
        terms=active_terms(options, options.streams),
        files=recipe.Files(
            outputs.student, outputs.history, outputs.checkpoints, outputs.tensorboard
        ),
        metrics=_agreement(options),
        image=_attention_image,
        scaled=(attention, options.mse.spatial_attn_lr),
    )
    facts = recipe.train(setup, recipe.Job(inputs.provenance, outputs.replace))
    source = inputs.cache or options.data.root
    return {
        "used": f"{len(data.table)} samples of {len(data.classes)} identities, from {source}",
        **({"targets": f"from {data.targets.location}"} if data.targets else {}),
        **started,
        **facts,
        "size": f"{sum(p.numel() for p in student.parameters()) / 1e6:.2f} M parameters",
        "cost": f"{cost / 1e6:.0f} M multiply-adds a sample",
    }


def _streams(student: Student) -> Callable[[nn.Module, Tensors], Streams]:
    """Runs the student on its streams' images; each stream's share of the heads."""

    def call(forward: nn.Module, images: Tensors) -> Streams:
        output = forward(images.get("face"), images.get("body"))
        return {
            stream: output._replace(
                logits=output.logits[:, heads],
                features=output.features[:, heads],
                embeddings=output.embeddings[:, student.triplet[stream]],
            )
            for stream, heads in student.heads.items()
        }

    return call


def _agreement(options: Options) -> Callable[[Streams, Tensors], Tensors]:
    """How far the face stream agrees with the teacher's logits, where it is trained on them."""
    from deskpro.stages.losses.agreement import agreement
    from deskpro.stages.models.lmbn import LMBN

    def metrics(outputs: Streams, targets: Tensors) -> Tensors:
        return agreement(outputs["face"].logits, targets["logits"], options.kd_loss.T, LMBN.heads)

    uses_logits = "logits" in targets_needed(options, options.streams)
    return metrics if uses_logits else lambda outputs, targets: {}


def _attention_image(
    batch: Mapping[str, Any], outputs: Streams, targets: Tensors
) -> torch.Tensor | None:
    """Bodies, the student's attention and its target, a row for each of 8 samples."""
    from deskpro.stages.data.overlay import side_by_side

    if "body" not in outputs or "attention" not in targets:
        return None
    attention = outputs["body"].attention
    assert attention is not None
    predicted, target = (a.detach()[:8].float().cpu() for a in (attention, targets["attention"]))
    return side_by_side(batch["imgs"][:8].cpu(), predicted, target)


def _from_cache(options: Options, inputs: Inputs, device: torch.device) -> TrainingSet:
    """The samples and views of the cache, in its order."""
    from deskpro.cache.errors import CacheError
    from deskpro.cache.reader import open_reader
    from deskpro.stages.data.views import DrawnViews, StoredViews
    from deskpro.stages.training.recipe import TrainingSet

    assert inputs.cache is not None
    reader, recipe = open_reader(inputs.cache), options.train_student
    with distributed.rank_zero_first():
        _require_match(reader, options, inputs)
        table = _checked(options, inputs, "leave-out")  # the cache says which samples are used
    table = table.set_index("sample_id", drop=False)
    sample_ids = reader.column("sample_id").tolist()
    missing = [sample_id for sample_id in sample_ids if sample_id not in table.index]
    if missing:
        raise InputError(
            f"{inputs.cache}: {len(missing)} of its {len(sample_ids)} samples lack an image in "
            f"{options.data.root}:\n  "
            + "\n  ".join(missing[:40])
            + "\nPut them back, or rebuild the cache: make teacher-cache FORCE=1"
        )
    table = table.loc[sample_ids].reset_index(drop=True)
    labels, classes = reader.column("label"), reader.fingerprint["classes"]
    if [classes[label] for label in labels] != table["pid"].tolist():
        raise CacheError(
            f"{inputs.cache}: its labels differ from the identities that data_train="
            f"{options.data_train} reads in the names of its samples. Set the data_train that the "
            "cache was made with"
        )
    stored = reader.column("views")
    count = recipe.views or stored.shape[1]
    if count > stored.shape[1]:
        raise InputError(
            f"train_student.views: {count} is more than the {stored.shape[1]} views of "
            f"{inputs.cache}. Add views to it: make teacher-cache ARGS='--set cache.views={count}'"
        )
    views: Callable[[int, int], Any] = StoredViews(stored)
    if recipe.fresh_views:
        views, count = DrawnViews(options.views, sample_ids), recipe.epochs
    return TrainingSet(
        table, labels, classes, views, count, _targets(reader, options, inputs, device)
    )


def _targets(
    reader: TargetReader, options: Options, inputs: Inputs, device: torch.device
) -> Targets | None:
    """The teacher to ask, if the student needs one: its cache, or itself."""
    from deskpro.stages.models.lmbn import map_size
    from deskpro.stages.models.weights import load_teacher
    from deskpro.stages.targets.teachers import CachedTeacher, LiveTeacher

    if not targets_needed(options, options.streams):
        return None
    recipe, cache = options.train_student, options.cache
    if not recipe.live_teacher:
        return CachedTeacher(reader, device, budget=cache.memory * 1e9, plain=recipe.fresh_views)
    teacher, _ = load_teacher(inputs.teacher)
    return LiveTeacher(teacher, map_size(options.data.body_size), cache.precision, device)


def _drawn(options: Options, inputs: Inputs) -> TrainingSet:
    """The training samples themselves, for a student without targets: with the views of a cache."""
    from deskpro.stages.data.views import DrawnViews, StoredViews
    from deskpro.stages.training.recipe import training_set

    with distributed.rank_zero_first():
        table = _checked(options, inputs, options.data.incomplete)
    drawn = DrawnViews(options.views, table["sample_id"].tolist(), options.cache.plain_view)
    count = options.cache.views
    return training_set(table, StoredViews(drawn.table(count)), count)


def _checked(options: Options, inputs: Inputs, incomplete: str) -> pd.DataFrame:
    """The training samples that have every image that the student sees."""
    from deskpro.stages.data.check import check_data
    from deskpro.stages.targets.teachers import LiveTeacher

    seen = [STREAM_IMAGES[stream] for stream in options.streams]
    if options.train_student.live_teacher:
        seen += LiveTeacher.kinds
    checked = check_data(
        options.data.root,
        options.data_train,
        splits=("train",),
        needs=("imgs", *(kind for kind in seen if kind != "imgs")),
        incomplete=incomplete,
        file_index=inputs.file_index,
    ).require()
    return checked.split("train")


def _require_match(reader: TargetReader, options: Options, inputs: Inputs) -> None:
    """Refuse a cache that these options, and the images that are here, would not give.

    Its teacher, HR faces and masks may be gone; what is here is compared.
    """
    from deskpro.cache.errors import CacheError
    from deskpro.stages.data.index import read_index
    from deskpro.stages.data.layouts import LAYOUTS
    from deskpro.stages.targets.provenance import image_differences, option_differences

    index, _ = read_index(options.data.root, LAYOUTS[options.data_train], ("train",))
    differing = option_differences(reader, options, inputs.teacher)
    differing += image_differences(reader, index, inputs.file_index)
    if differing:
        raise CacheError(
            f"{reader.path}: built from another recipe or images: {'; '.join(differing)}. Restore "
            "them, or rebuild the cache: make teacher-cache FORCE=1"
        )
