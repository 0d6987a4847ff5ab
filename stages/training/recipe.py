"""How both networks are trained: P×K batches, losses, several ranks, checkpoints, saved weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from torch import nn

from deskpro.stages.base import distributed
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar, start
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Job
from deskpro.stages.base.training_options import Recipe
from deskpro.stages.data.index import class_order
from deskpro.stages.data.loader import TEACHER, ImageDataset, images_of, iterate, load
from deskpro.stages.data.sampler import PKSampler
from deskpro.stages.losses.terms import Term, any_waits, compute_losses, is_loss
from deskpro.stages.models.lmbn import LMBN, Output
from deskpro.stages.models.student import Student
from deskpro.stages.models.weights import ModelInfo, save
from deskpro.stages.training.checkpoints import Checkpoints
from deskpro.stages.training.loop import Batch, Losses, Updates, default_peak, fit, learning_rate
from deskpro.stages.training.monitor import open_loggers
from deskpro.stages.training.signals import stop_requests

Streams = dict[str, Output]
"""Stream → what the network gives for it."""
Tensors = dict[str, torch.Tensor]


class Targets(Protocol):
    """A teacher, live or cached: batch → its targets by name, [B, …] on the student's device."""

    sees: tuple[str, ...]
    """The kinds of image that it needs in the batch."""
    location: str
    """Where the targets come from, for the summary."""
    valid: Mapping[str, torch.Tensor]
    """Target → bool [N]: the samples that have it; all if absent."""

    def __call__(self, batch: Mapping[str, Any]) -> Tensors: ...


@dataclass(frozen=True)
class TrainingSet:
    """The samples of a training, N rows."""

    table: pd.DataFrame
    """`sample_id`, and the path of each kind of image."""
    labels: np.ndarray
    """int64 [N], indices into `classes`."""
    classes: list[str]
    views: Callable[[int, int], np.ndarray]
    """(row, view) → float32 [len(View)]."""
    count: int
    """Views of each sample."""
    targets: Targets | None = None
    held_out: pd.DataFrame | None = None
    """Samples of identities that are not trained on, as `table`."""
    projected: Mapping[str, tuple[str, tuple[int, int]]] = field(default_factory=dict)
    """Name of a teacher whose embeddings a projection meets → the stream that learns from it, and
    heads and length of its embeddings."""

    def present(self, images: Mapping[str, str]) -> dict[str, torch.Tensor]:
        """Of each stream, by the kind of image that it sees, which samples have it: bool [N]."""
        return {
            stream: torch.from_numpy(self.table[kind].notna().to_numpy(copy=True))
            for stream, kind in images.items()
        }


def training_set(
    table: pd.DataFrame,
    views: Callable[[int, int], np.ndarray],
    count: int,
    classes: list[str] | None = None,
) -> TrainingSet:
    """The samples of a table as they are, without targets; classes: those of the table, or more."""
    classes = classes or class_order(table["pid"])
    index = {pid: label for label, pid in enumerate(classes)}
    labels = table["pid"].map(index).to_numpy(np.int64, copy=True)
    return TrainingSet(table, labels, classes, views, count)


@dataclass(frozen=True)
class Setup:
    """A network and what it is trained on."""

    kind: Literal["teacher", "student"]
    options: Options
    network: LMBN | Student
    arguments: dict[str, Any]
    """Keyword arguments of the network's class, for its description."""
    data: TrainingSet
    device: torch.device
    images: Mapping[str, str]
    """Stream → the kind of image that it sees."""
    call: Callable[[nn.Module, Tensors, Tensors], Streams]
    """Runs the module on the images by stream, float32 [B, 3, H, W]; third: stream → bool [B] on
    the CPU, the samples that have its image, all if absent."""
    terms: Mapping[str, Term]
    folder: RunFolder
    """For weights, history, checkpoints and TensorBoard."""
    sampled: Mapping[str, str] | None = None
    """As `images`: batches are of the samples that have any of these, of `images` where None."""
    start: Mapping[str, Any] | None = None
    """What came from other weights, for the summary."""
    metrics: Callable[[Streams, Tensors, Tensors], Tensors] = lambda outputs, targets, valid: {}
    """What is logged beside the losses; valid: as `compute_losses` takes it."""
    image: Callable[[Batch, Streams, Tensors], torch.Tensor | None] = lambda *last: None
    """uint8 [3, H, W] to look at, from the last batch."""
    scaled: tuple[Iterable[nn.Parameter], float] = ((), 1.0)
    """Parameters and the factor of their learning rate."""
    validate: Callable[[], Mapping[str, float]] | None = None
    """mAP on held-out identities, where there are any."""
    learn: Callable[[], Mapping[str, Any]] = dict
    """What held-out identities tell, by field of `ModelInfo`."""


def train(setup: Setup, job: Job) -> dict[str, Any]:
    """Train the network and save its weights.

    Started by torchrun, each rank trains on its share of every batch's identities. Losses are means
    over a rank's share, the shares are of one size, and gradients are averaged: so they are those
    of one process with the whole batch, but for batch statistics (unless `sync_batch_norm`) and
    hardest triplets (unless `gather_triplets`).

    Returns:
        steps; batch, (P, K); losses, those of the last epoch by name; mAP of each stream on
        held-out identities; short_identities, how many have fewer than K images; start, as given.
    """
    options, data, recipe = setup.options, setup.data, setup.options.recipe(setup.kind)
    usable = torch.stack([*data.present(setup.sampled or setup.images).values()]).any(0).numpy()
    sampler = make_sampler(data, recipe, usable)
    loader = load(_images(setup), sampler, options.data.workers, setup.device)
    setup.network.to(setup.device)
    forward = _forward(setup, recipe)
    last: list[tuple[Batch, Streams, Tensors]] = []

    def batches(epoch: int, start: int) -> Iterable[Batch]:
        sampler.set_epoch(epoch, start)
        return iterate(loader)

    def shown() -> torch.Tensor | None:
        return setup.image(*last[0]) if last else None

    steps = _announce(setup, recipe, len(sampler))
    folder, kind = setup.folder, setup.kind
    checkpoints = _checkpoints(setup, recipe, job)
    logs = open_loggers(folder.history(kind), folder.tensorboard(kind), options.tensorboard, shown)
    progress = bar(f"train-{setup.kind}", steps, "steps")
    with stop_requests() as stop, progress as seen, logs as loggers:
        history = fit(
            setup.network,
            batches,
            _losses(setup, recipe, forward, last),
            training=recipe.training,
            updates=Updates(_rate(recipe, len(sampler)), setup.scaled, recipe.ema),
            device=setup.device,
            bar=seen,
            checkpoints=checkpoints,
            sample_ids=lambda batch: data.table["sample_id"].iloc[batch["row"].tolist()].tolist(),
            stop=stop,
            loggers=loggers,
            job=job,
            validate=partial(_validate, setup, recipe.training.epochs),
        )
    if distributed.is_main():
        save(folder.weights(kind), setup.network, _info(setup))
    row = history.rows[-1]
    return {
        "steps": history.steps,
        "batch": (recipe.batchid, recipe.batchimage),
        "losses": {name: value for name, value in row.items() if is_loss(name)},
        "mAP": {n.removeprefix("mAP_"): v for n, v in row.items() if n.startswith("mAP_")},
        "short_identities": sampler.short_identities(),
        "start": setup.start,
    }


def _checkpoints(setup: Setup, recipe: Recipe, job: Job) -> Checkpoints:
    whole = recipe.sync_batch_norm and recipe.gather_triplets  # whatever the number of processes
    place, options = setup.folder.checkpoints(setup.kind), setup.options.checkpoints
    return Checkpoints(place, job.provenance, options, alike=whole)


def _announce(setup: Setup, recipe: Recipe, epoch_steps: int) -> int:
    """Say what will be trained; its number of steps."""
    steps = epoch_steps * recipe.training.epochs
    steps = min(steps, recipe.training.max_steps or steps)
    start(
        f"train-{setup.kind}",
        device=setup.device,
        samples=int((setup.data.labels >= 0).sum()),
        steps=f"{steps} of {recipe.batchid}×{recipe.batchimage} images"
        + (f" and {recipe.unlabelled} without labels" if recipe.unlabelled else ""),
        output=setup.folder.weights(setup.kind),
    )
    return steps


def _rate(recipe: Recipe, epoch_steps: int) -> Callable[[int], float]:
    """Steps before → learning rate."""
    peak = recipe.training.lr or default_peak(recipe.batchid * recipe.batchimage)
    return partial(learning_rate, peak=peak, training=recipe.training, epoch_steps=epoch_steps)


def _validate(setup: Setup, epochs: int, epoch: int) -> Mapping[str, float]:
    """mAP on held-out identities after an epoch, counted from 0, of so many: where it is due."""
    due = epoch + 1 == epochs or (epoch + 1) % setup.options.train_student.validate_every == 0
    if setup.validate is None or not due or not distributed.is_main():
        return {}
    return setup.validate()


def make_sampler(data: TrainingSet, recipe: Recipe, usable: np.ndarray | None = None) -> PKSampler:
    """This rank's batches.

    Args:
        data: the samples.
        recipe: batch size and seed.
        usable: bool [N], the samples that some stream sees; all if None.

    Raises:
        InputError: P identities can't be had, or can't be shared among the ranks.
    """
    ranks, batchid, name = distributed.world_size(), recipe.batchid, f"{recipe.prefix}batchid"
    for option, count in ((name, batchid), ("train_student.unlabelled", recipe.unlabelled)):
        if count % ranks:
            raise InputError(
                f"{option} {count} can't be shared among {ranks} processes: --set "
                f"{option}={max(count // ranks, 1) * ranks}"
            )
    if batchid // ranks < 2 and not recipe.gather_triplets:
        other = " or --set train_student.gather_triplets=true" if not recipe.prefix else ""
        raise InputError(
            f"{name} {batchid} leaves {batchid // ranks} identity to each of {ranks} processes, "
            f"and a triplet needs two: --set {name}={2 * ranks}{other}"
        )
    sampler = PKSampler(
        data.labels,
        batchid,
        recipe.batchimage,
        data.count,
        recipe.training.seed,
        distributed.rank(),
        ranks,
        usable,
        recipe.unlabelled,
    )
    if recipe.unlabelled and not len(sampler.unlabelled):
        raise InputError(
            "train_student.unlabelled: no image of data.unlabelled has what a stream sees (imgs "
            "for the body, lr_face for the face). Add such images, or --set "
            "train_student.unlabelled=0"
        )
    if not len(sampler):
        found = len(np.unique(sampler.labels))
        advice = "training needs two" if found < 2 else f"--set {name}={found} or less"
        raise InputError(
            f"{found} training identities make no batch of batchid {batchid}: {advice}"
        )
    return sampler


def _images(setup: Setup) -> ImageDataset:
    data, seen = setup.options.data, [*setup.images.values()]
    needed = [
        TEACHER + kind if kind in seen else kind
        for kind in (setup.data.targets.sees if setup.data.targets else ())
    ]
    sizes = {
        kind: data.face_size if kind.endswith("face") else data.body_size
        for kind in (*seen, *needed)
    }
    return ImageDataset(setup.data.table, sizes, setup.data.views, quick=seen)


def _forward(setup: Setup, recipe: Recipe) -> nn.Module:
    """The module to call in training: with its memory format, compiled, shared among the ranks.

    Also sets, for the whole process, how a GPU multiplies float32.
    """
    network, device = setup.network, setup.device
    torch.backends.cuda.matmul.allow_tf32 = recipe.training.tf32
    torch.backends.cudnn.allow_tf32 = recipe.training.tf32
    if recipe.sync_batch_norm and distributed.world_size() > 1:
        if device.type != "cuda":
            raise InputError(
                "train_student.sync_batch_norm: torch synchronises batch norm on GPUs only, the "
                f"device is {device.type}. Allowed here is false"
            )
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place
    if recipe.training.channels_last:
        network.to(memory_format=torch.channels_last)  # activations follow the weights
    forward: Any = torch.compile(network) if recipe.training.compile else network
    partly = any_waits(setup.terms, recipe.losses, step=0)
    return distributed.data_parallel(forward, device, partly=partly)


def _losses(
    setup: Setup, recipe: Recipe, forward: nn.Module, last: list[Any]
) -> Callable[[Batch, int], Losses]:
    """(batch, steps before) → losses and metrics; leaves what the logged image needs in `last`."""
    labels = torch.from_numpy(setup.data.labels).to(setup.device)
    present = setup.data.present(setup.images)
    some = {stream: rows for stream, rows in present.items() if not rows.all()}
    known = {**(setup.data.targets.valid if setup.data.targets else {}), **some}
    if recipe.unlabelled:
        known["label"] = torch.from_numpy(setup.data.labels >= 0)

    def of_batch(batch: Batch, step: int) -> Losses:
        layout = recipe.training.channels_last
        images = {
            stream: images_of(batch, kind, setup.device, channels_last=layout)
            for stream, kind in setup.images.items()
        }
        valid = {name: rows[batch["row"]] for name, rows in known.items()}
        outputs = setup.call(forward, images, {name: valid[name] for name in some})
        shown = {**batch, **{name.removeprefix(TEACHER): v for name, v in batch.items()}}
        targets = setup.data.targets(shown) if setup.data.targets else {}
        targets = {**targets, "label": labels[batch["row"].to(setup.device, non_blocking=True)]}
        last[:] = [(batch, outputs, targets)]
        losses = compute_losses(
            setup.terms,
            recipe.losses,
            outputs,
            targets,
            valid,
            step=step,
            gather=distributed.all_gather if recipe.gather_triplets else None,
            mean_of_ranks=distributed.mean_of_ranks if distributed.world_size() > 1 else None,
        )
        return Losses(losses, setup.metrics(outputs, targets, valid))

    return of_batch


def _info(setup: Setup) -> ModelInfo:
    data = setup.options.data
    return ModelInfo(
        kind=setup.kind,
        network=setup.arguments,
        num_classes=len(setup.data.classes),
        classes=setup.data.classes,
        face_size=data.face_size,
        body_size=None if setup.kind == "teacher" else data.body_size,
        processes=distributed.world_size(),
        **setup.learn(),
    )
