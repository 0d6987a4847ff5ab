"""Train a teacher on HR faces, where none is at hand: cross-entropy and batch-hard triplet loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages import device as devices
from stages.data.check import check_data
from stages.data.index import class_order
from stages.data.loader import Pictures, iterate, load, photographs
from stages.data.sampler import PKSampler
from stages.data.views import DrawnViews
from stages.engine.loop import fit
from stages.engine.schedule import default_peak
from stages.errors import InputError
from stages.files import write_aside
from stages.losses import cross_entropy, triplet
from stages.models.lmbn import LMBN
from stages.models.warm_start import warm_start
from stages.models.weights import Description, save
from stages.options import Options
from stages.progress import bar


@dataclass(frozen=True)
class Inputs:
    """memo: file that remembers which pictures were checked (made if absent)."""

    memo: Path


@dataclass(frozen=True)
class Outputs:
    """teacher: weights; history: CSV, a row per epoch; left_out: CSV of samples not used."""

    teacher: Path
    history: Path
    left_out: Path


def run(options: Options, inputs: Inputs, outputs: Outputs) -> dict[str, object]:
    """Train on every complete training sample; returns the facts for the summary."""
    device = devices.pick(options.device)
    recipe, data = options.train_teacher, options.data

    # All kinds and splits, not just HR faces: nothing must be found wrong after hours of work.
    checked = check_data(
        data.root, options.data_train, incomplete=data.incomplete, memo=inputs.memo
    ).require()
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
    pictures = Pictures(train, {"hr_face": data.face_size}, views)
    loader = load(pictures, sampler, data.workers, device)

    torch.manual_seed(recipe.seed)
    network = LMBN(len(classes), **options.teacher.arguments)
    start = options.teacher.pre_train
    started = warm_start(network, start).facts(start) if start is not None else {}
    network.to(device)
    targets = torch.from_numpy(labels).to(device)

    def batches(epoch: int) -> Iterable[Mapping[str, Any]]:
        sampler.set_epoch(epoch)
        return iterate(loader)

    def terms(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        output = network(photographs(batch, "hr_face", device))
        label, loss = targets[batch["row"]], recipe.loss
        return {
            "ce": loss.cross_entropy
            * cross_entropy(output.logits, label, label_smoothing=loss.label_smoothing),
            "triplet": loss.triplet * triplet(output.embeddings, label, margin=loss.margin),
        }

    steps = min(len(sampler) * recipe.epochs, recipe.max_steps or len(sampler) * recipe.epochs)
    with bar("train-teacher", steps, "steps") as progress:
        history = fit(
            network,
            batches,
            terms,
            training=recipe,
            peak_lr=recipe.lr or default_peak(recipe.batchid * recipe.batchimage),
            device=device,
            bar=progress,
        )
    with write_aside(outputs.history) as aside:
        history.table().to_csv(aside, index=False)
    described = Description(
        kind="teacher",
        network=options.teacher.arguments,
        num_classes=len(classes),
        classes=classes,
        face_size=data.face_size,
        body_size=None,
    )
    save(outputs.teacher, network, described)
    return {
        **checked.facts(outputs.left_out),
        **started,
        "steps": f"{history.steps}, {recipe.batchid}×{recipe.batchimage} pictures each",
        "last loss": f"{history.rows[-1]['total']:.3f}",
        "teacher": outputs.teacher,
    }
