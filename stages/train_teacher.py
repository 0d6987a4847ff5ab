"""Train a teacher on HR faces, where none is at hand: cross-entropy and batch-hard triplet loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deskpro.stages.base import device as devices
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar
from deskpro.stages.data.check import check_data
from deskpro.stages.data.index import class_order
from deskpro.stages.data.loader import ImageDataset, images_of, iterate, load
from deskpro.stages.data.sampler import PKSampler
from deskpro.stages.data.views import DrawnViews
from deskpro.stages.losses import cross_entropy, triplet
from deskpro.stages.models.lmbn import LMBN
from deskpro.stages.models.warm_start import warm_start
from deskpro.stages.models.weights import ModelInfo, save
from deskpro.stages.training.checkpoints import Checkpoints
from deskpro.stages.training.loop import Losses, fit, repeated, setup_model
from deskpro.stages.training.monitor import open_loggers
from deskpro.stages.training.schedule import default_peak
from deskpro.stages.training.signals import stop_requests


@dataclass(frozen=True)
class Inputs:
    """file_index: known images; provenance: by name,
    everything that the weights depend on, for checkpoints."""

    file_index: Path
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Outputs:
    """teacher: weights; history: CSV, a row per epoch; left_out: CSV of samples not used;
    checkpoints, tensorboard: folders; replace: checkpoints of another recipe may be removed."""

    teacher: Path
    history: Path
    left_out: Path
    checkpoints: Path
    tensorboard: Path
    replace: bool = False


def run(options: Options, inputs: Inputs, outputs: Outputs) -> dict[str, object]:
    """Train on every complete training sample; returns the facts for the summary."""
    device = devices.pick(options.device)
    recipe, data = options.train_teacher, options.data

    # All kinds and splits, not just HR faces: nothing must be found wrong after hours of work.
    checked = check_data(data.root, options.data_train, incomplete=data.incomplete).require()
    train = checked.split("train")
    classes = class_order(train["pid"])
    index = {pid: i for i, pid in enumerate(classes)}
    labels = train["pid"].map(index).to_numpy(np.int64, copy=True)

    sampler = PKSampler(
        labels, recipe.batchid, recipe.batchimage, views=recipe.epochs, seed=recipe.seed
    )
    if not len(sampler):
        raise InputError(
            f"{len(classes)} training identities make no batch of batchid {recipe.batchid}: "
            f"--set train_teacher.batchid={max(len(classes), 2)} or less"
        )
    views = DrawnViews(recipe.views, train["sample_id"].tolist())
    images = ImageDataset(train, {"hr_face": data.face_size}, views, quick=["hr_face"])
    loader = load(images, sampler, data.workers, device)

    torch.manual_seed(recipe.seed)
    network = LMBN(len(classes), **options.teacher.arguments)
    start = options.teacher.pre_train
    started = warm_start(network, start).facts(start) if start is not None else {}
    network.to(device)
    targets = torch.from_numpy(labels).to(device)

    forward = setup_model(network, recipe)

    def batches(epoch: int, start: int) -> Iterable[Mapping[str, Any]]:
        sampler.set_epoch(epoch, start)
        return iterate(loader)

    def terms(batch: Mapping[str, Any]) -> Losses:
        faces = images_of(batch, "hr_face", device, channels_last=recipe.channels_last)
        output = forward(faces)
        label, loss = targets[batch["row"].to(device, non_blocking=True)], recipe.loss
        losses = {
            "ce": loss.cross_entropy
            * cross_entropy(output.logits, label, label_smoothing=loss.label_smoothing),
            "triplet": loss.triplet * triplet(output.embeddings, label, margin=loss.margin),
        }
        return Losses(losses, {})

    steps = min(len(sampler) * recipe.epochs, recipe.max_steps or len(sampler) * recipe.epochs)
    checkpoints = Checkpoints(
        outputs.checkpoints, inputs.provenance, options.checkpoints.every, options.checkpoints.keep
    )
    with (
        stop_requests() as stop,
        bar("train-teacher", steps, "steps") as progress,
        open_loggers(outputs.history, outputs.tensorboard, options.tensorboard) as loggers,
    ):
        history = fit(
            network,
            batches,
            terms,
            training=recipe,
            peak_lr=recipe.lr or default_peak(recipe.batchid * recipe.batchimage),
            device=device,
            bar=progress,
            checkpoints=checkpoints,
            replace=outputs.replace,
            names=lambda batch: train["sample_id"].iloc[batch["row"].tolist()].tolist(),
            stop=stop,
            loggers=loggers,
        )
    info = ModelInfo(
        kind="teacher",
        network=options.teacher.arguments,
        num_classes=len(classes),
        classes=classes,
        face_size=data.face_size,
        body_size=None,
    )
    save(outputs.teacher, network, info)
    return {
        **checked.facts(outputs.left_out),
        **repeated(sampler),
        **started,
        "steps": f"{history.steps}, {recipe.batchid}×{recipe.batchimage} images each",
        "last loss": f"{history.rows[-1]['total']:.3f}",
        "teacher": outputs.teacher,
    }
