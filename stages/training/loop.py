"""The training loop: batches in, losses summed and minimised, a row of history per epoch out."""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import swa_utils

from deskpro.stages.base.distributed import (
    all_gather_object,
    is_main,
    mean_of_ranks,
    rank_zero_first,
    world_size,
)
from deskpro.stages.base.errors import InputError, Stopped
from deskpro.stages.base.foreign import some
from deskpro.stages.base.progress import Bar, log
from deskpro.stages.base.stage import Job
from deskpro.stages.base.training_options import Training
from deskpro.stages.training.checkpoints import Checkpoints, State
from deskpro.stages.training.monitor import History, Logger
from deskpro.stages.training.signals import StopRequest

Batch = Mapping[str, Any]
Values = dict[str, torch.Tensor]
"""Scalars by name, on the device."""

READ_EVERY = 10
"""Steps between two readings of the losses: each makes a GPU wait."""


class Losses(NamedTuple):
    """What a batch gives: weighted losses, whose sum is minimised, and what is only logged."""

    losses: Values
    metrics: Values


def default_peak(batch: int) -> float:
    """The published peak learning rate for P·K = `batch` images: 6e-4·√(batch/20)."""
    return 6e-4 * (batch / 20) ** 0.5


FINAL = {"step": 1e-2, "epoch": 1e-3}
"""Schedule → the last learning rate, of the peak."""


def learning_rate(step: int, peak: float, training: Training, epoch_steps: int) -> float:
    """The learning rate of a step counted from 0, in epochs of `epoch_steps`.

    With i and n the number of the step and of all steps, or of its epoch and of all epochs, as
    `training.schedule` says, and w those of the warm-up: peak·(i+1)/w where i < w, then
    a cosine from the peak to `FINAL` of it, reached where i = n−1.
    """
    each = epoch_steps if training.schedule == "step" else 1
    i, count = step * each // epoch_steps, training.epochs * each
    warmup = round(training.warmup_epochs * each)
    if i < warmup:
        return peak * (i + 1) / warmup
    floor = peak * FINAL[training.schedule]
    done = (i - warmup) / max(count - warmup - 1, 1)
    return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2


class Updates(NamedTuple):
    """How weights change."""

    rate: Callable[[int], float]
    """Step, counted from 0 → its learning rate."""
    scaled: tuple[Iterable[nn.Parameter], float] = ((), 1.0)
    """Parameters and the factor of their learning rate."""
    ema: float = 0.0
    """Decay of the average of the weights that the network has in the end; 0: the last ones."""


def fit(
    network: nn.Module,
    batches: Callable[[int, int], Iterable[Batch]],
    compute_losses: Callable[[Batch, int], Losses],
    *,
    training: Training,
    updates: Updates,
    device: torch.device,
    bar: Bar,
    checkpoints: Checkpoints,
    sample_ids: Callable[[Batch], Sequence[str]],
    stop: StopRequest,
    loggers: Sequence[Logger],
    job: Job,
    validate: Callable[[int], Mapping[str, float]] = lambda epoch: {},
) -> History:
    """Train `network` in place with Adam, from its last checkpoint if there is one.

    Checkpoints are written every `checkpoints.every` steps and after every epoch. A resumed run
    ends with the weights of an uninterrupted one, as training draws no random numbers.

    Args:
        batches: (epoch, start) → the batches of the epoch but for the first `start`.
        compute_losses: (batch, steps before) → losses; runs under autocast of the precision.
        job: whether to begin at step 0 in any case, or where checkpoints are of another recipe.
        validate: number of the epoch that ends → more columns of its row.

    Raises:
        InputError: a loss or weight is not finite; it is in no checkpoint and no history.
        Stopped: `stop` has a signal; a checkpoint is written first.
    """
    run = _Run(network, training, updates, device)
    monitor = _StepMonitor(network, bar, loggers, checkpoints.folder, training.epochs)
    history = run.restore(_checkpoint(checkpoints, job), device)
    bar.restart(history.steps)

    def save() -> None:
        monitor.before_checkpoint()
        run.epoch.share()
        if is_main():
            checkpoints.save(history.steps, run.state())

    while run.epoch.number < training.epochs and history.steps != training.max_steps:
        started, before = time.perf_counter(), run.epoch.seconds
        for batch in batches(run.epoch.number, run.epoch.done):
            found = run.step(batch, compute_losses)
            run.epoch.seconds = before + time.perf_counter() - started
            monitor.add(history.steps, run.epoch.number, found, sample_ids(batch))
            if history.steps == training.max_steps:
                break
            number = max(all_gather_object(stop.signal or 0))
            if number or history.steps % checkpoints.options.every == 0:
                save()
            _stop_if(number, history.steps, checkpoints.folder, job.anew)
        monitor.end_epoch()
        run.end_epoch(loggers, validate)
        save()
    run.finish()
    return history


def _checkpoint(checkpoints: Checkpoints, job: Job) -> State | None:
    """The state to go on from, the same on every rank: rank 0 removes what is not."""
    with rank_zero_first():
        if job.anew:
            checkpoints.clear()
        return checkpoints.load(replace=job.replaces)


@dataclass
class _Epoch:
    """The epoch under way: its number, batches done, and sums that its row of history needs."""

    number: int = 0
    done: int = 0
    images: int = 0
    seconds: float = 0.0
    lr: float = 0.0
    """Of its last step."""
    sums: Values = field(default_factory=dict)
    gaps: Values = field(default_factory=dict)
    """By name, the batches that don't tell it: a metric is nan where no sample has it."""

    def add(self, values: Values) -> None:
        """Add what a batch gives."""
        # Summed on the device: reading a value here would wait for it at every step.
        for name, value in values.items():
            found = value.detach().float()
            gap = found.isnan()
            self.sums[name] = self.sums.get(name, 0) + torch.where(gap, 0, found)
            self.gaps[name] = self.gaps.get(name, 0) + gap.float()

    def share(self) -> None:
        """Make sums and gaps the means over all ranks."""
        for values in (self.sums, self.gaps):
            if values:
                shared = mean_of_ranks(torch.stack([*values.values()]))
                values |= zip(values, shared, strict=True)

    def row(self) -> dict[str, float]:
        self.share()
        batches = {name: self.done - gap.item() for name, gap in self.gaps.items()}
        means = {
            name: total.item() / count if (count := batches.get(name, self.done)) else math.nan
            for name, total in self.sums.items()
        }
        rate = self.images / max(self.seconds, 1e-9)
        return {"epoch": self.number + 1, "lr": self.lr, **means, "images_per_s": rate}


class _Run:
    """Everything that changes while a network is trained."""

    def __init__(
        self, network: nn.Module, training: Training, updates: Updates, device: torch.device
    ) -> None:
        self.network, self.history, self.epoch = network.train(), History(), _Epoch()
        self.rate, (parameters, factor), ema = updates
        chosen = {id(parameter) for parameter in parameters}
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if id(p) not in chosen], "scale": 1.0},
            {"params": [p for p in trained if id(p) in chosen], "scale": factor},
        ]
        self.optimiser = torch.optim.Adam(
            [group for group in groups if group["params"]],
            lr=self.rate(0),
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.averaged = None
        if ema:
            average = swa_utils.get_ema_multi_avg_fn(ema)
            self.averaged = swa_utils.AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        precision: torch.dtype = getattr(torch, training.precision)
        lower = precision is not torch.float32
        self.autocast = torch.autocast(device.type, precision, enabled=lower)
        scales = precision is torch.float16 and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scales)

    def step(self, batch: Batch, compute_losses: Callable[[Batch, int], Losses]) -> Losses:
        """Take a step; the losses with their total, and the metrics."""
        lr = self.rate(self.history.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["scale"]
        with self.autocast:
            losses, metrics = compute_losses(batch, self.history.steps)
        total = torch.stack(list(losses.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        losses, self.epoch.lr = losses | {"total": total}, lr
        self.epoch.add(losses | metrics)
        self.history.steps += 1
        self.epoch.done += 1
        self.epoch.images += len(batch["row"]) * world_size()
        return Losses(losses, metrics)

    def end_epoch(
        self, loggers: Sequence[Logger], validate: Callable[[int], Mapping[str, float]]
    ) -> None:
        """Add the epoch's row to the history, unless it has no batch, and begin the next."""
        if self.epoch.done:
            row = self.epoch.row()
            with self._as_saved():
                row |= validate(self.epoch.number)
            self.history.rows.append(row)
            for logger in loggers:
                logger.epoch(self.history)
        self.epoch = _Epoch(self.epoch.number + 1)

    def finish(self) -> None:
        """Leave the network as it is to be used."""
        if self.averaged is not None:
            self.network.load_state_dict(self.averaged.module.state_dict())
        self.network.eval()

    @contextmanager
    def _as_saved(self) -> Iterator[None]:
        """While the block runs, the network is as it would be saved now."""
        last = copy.deepcopy(self.network.state_dict()) if self.averaged is not None else None
        self.finish()
        try:
            yield
        finally:
            if last is not None:
                self.network.load_state_dict(last)
            self.network.train()

    def state(self) -> State:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averaged": self.averaged and self.averaged.state_dict(),
            "steps": self.history.steps,
            "rows": self.history.rows,
            "epoch": vars(self.epoch),
        }

    def restore(self, state: State | None, device: torch.device) -> History:
        """Go on from a state, if there is one; the history so far."""
        if state is None:
            return self.history
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.history.steps, self.history.rows = state["steps"], state["rows"]
        self.epoch = _Epoch(**state["epoch"])
        for values in (self.epoch.sums, self.epoch.gaps):
            values |= {name: value.to(device) for name, value in values.items()}
        log(f"resuming at step {self.history.steps}")
        return self.history


class _StepMonitor:
    """Reads what the last steps gave, logs it, and ends a training that diverged."""

    def __init__(
        self, network: nn.Module, bar: Bar, loggers: Sequence[Logger], folder: Path, epochs: int
    ) -> None:
        self.network, self.bar, self.loggers, self.folder = network, bar, loggers, folder
        self.epochs = epochs
        self.steps: list[tuple[int, int, Sequence[str]]] = []
        """Of each step not read yet: its number, epoch and samples."""
        self.values: list[torch.Tensor] = []
        self.last: tuple[int, int, Sequence[str]] | None = None

    def add(self, step: int, epoch: int, found: Losses, samples: Sequence[str]) -> None:
        self.bar.advance(1)
        self.losses, self.names = [*found.losses], [*found.losses, *found.metrics]
        values = [*found.losses.values(), *found.metrics.values()]
        self.values.append(torch.stack([value.detach().float() for value in values]))
        self.last = (step, epoch, samples)
        self.steps.append(self.last)
        if len(self.steps) >= READ_EVERY:
            self.read_losses()

    def read_losses(self) -> None:
        """Read what the steps since the last reading gave; InputError for a non-finite loss."""
        if not self.steps:
            return
        values = torch.stack(self.values)
        own, rows = values.tolist(), mean_of_ranks(values).tolist()
        steps, self.steps, self.values = self.steps, [], []
        for (step, epoch, samples), row, mine in zip(steps, rows, own, strict=True):
            means = dict(zip(self.names, row, strict=True))
            if any(not math.isfinite(means[name]) for name in self.losses):
                found = dict(zip(self.names, mine, strict=True))
                bad = [f"{n} is {found[n]}" for n in self.losses if not math.isfinite(found[n])]
                # Of several ranks, those whose loss is finite name the first one's samples.
                bad, samples = max(
                    all_gather_object((bad, [*samples])), key=lambda pair: len(pair[0])
                )
                raise self._diverged(bad, step, epoch, samples)
            shown = {name: f"{means[name]:.3f}" for name in self.losses}
            self.bar.note({"epoch": f"{epoch + 1}/{self.epochs}", **shown})
            for logger in self.loggers:
                logger.step(step, means)

    def end_epoch(self) -> None:
        """Read the last steps' losses, and say how far the training is."""
        self.read_losses()
        self.bar.epoch_ends()

    def before_checkpoint(self) -> None:
        """Check the losses and the weights; raises InputError for a non-finite one."""
        self.read_losses()
        for logger in self.loggers:
            logger.flush()
        if self.last is None:
            return
        tensors = {n: t for n, t in self.network.state_dict().items() if t.is_floating_point()}
        finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
        bad = [f"{name} is not finite" for name, ok in zip(tensors, finite, strict=True) if not ok]
        if bad:
            raise self._diverged(bad[:4], *self.last)

    def _diverged(
        self, bad: Sequence[str], step: int, epoch: int, samples: Sequence[str]
    ) -> InputError:
        return InputError(
            f"training diverged at step {step} (epoch {epoch + 1}): {', '.join(bad)}. Its samples: "
            f"{some(samples, 8)}. Earlier checkpoints, if any, are kept in "
            f"{self.folder}; try a lower learning rate or precision float32 "
            "(--set train_student.lr=…, or train_teacher.lr)"
        )


def _stop_if(number: int, step: int, folder: Path, anew: bool) -> None:
    if number:
        without = " without --force (FORCE=1)" if anew else ""
        raise Stopped(
            f"stopped by {signal.Signals(number).name} after step {step}, saved in {folder}; run "
            f"the same command{without} to resume",
            128 + number,
        )
