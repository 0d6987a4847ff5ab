"""One readable training loop: batches in, loss terms summed, a row of history per epoch out."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import pandas as pd
import torch
from torch import nn

from deskpro.stages.base.device import PRECISION
from deskpro.stages.base.errors import InputError, Stopped
from deskpro.stages.base.options import Training
from deskpro.stages.base.progress import Bar, log
from deskpro.stages.base.ranks import Ranks
from deskpro.stages.data.sampler import PKSampler
from deskpro.stages.training.checkpoints import Checkpoints, State
from deskpro.stages.training.schedule import learning_rate
from deskpro.stages.training.signals import StopRequest

Values = dict[str, torch.Tensor]
"""Scalars by name, on the device."""


class Losses(NamedTuple):
    """What a batch gives: weighted losses, whose sum is minimised, and what is only watched."""

    losses: Values
    metrics: Values


class Batches(Protocol):
    """Anything that gives the batches of one epoch, but for the first `start`."""

    def __call__(self, epoch: int, start: int) -> Iterable[Mapping[str, Any]]: ...


class Logger(Protocol):
    """Who wants to know how training goes; none of it may change the result."""

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """The losses, total and what is watched of a step; they arrive a few steps late."""

    def epoch(self, history: History) -> None:
        """An epoch is over."""

    def flush(self) -> None:
        """A checkpoint is about to be written: keep what was said until now."""


@dataclass
class History:
    """What training did: steps taken and one row per epoch."""

    steps: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        """Columns epoch, lr, one per loss term, total, what was watched, images_per_s."""
        return pd.DataFrame(self.rows)


@dataclass
class _Epoch:
    """The epoch under way: its number, batches done, and sums that its row of history needs."""

    number: int = 0
    done: int = 0
    images: int = 0
    seconds: float = 0.0
    sums: Values = field(default_factory=dict)


def setup_model(network: nn.Module, training: Training) -> nn.Module:
    """The module to call in training: the network itself, or compiled, with its memory format.

    Also settles, for the whole process, how a GPU multiplies float32.
    """
    torch.backends.cuda.matmul.allow_tf32 = training.tf32
    torch.backends.cudnn.allow_tf32 = training.tf32
    if training.channels_last:
        network.to(memory_format=torch.channels_last)  # activations follow the weights
    return torch.compile(network) if training.compile else network  # type: ignore[return-value]


def repeated(sampler: PKSampler) -> dict[str, object]:
    """For the summary: how many identities have too few images for a batch."""
    count = sampler.short_identities()
    if not count:
        return {}
    return {"repeated": f"{count} identities have fewer than {sampler.images} images"}


def fit(
    network: nn.Module,
    batches: Batches,
    terms: Callable[[Mapping[str, Any]], Losses],
    *,
    training: Training,
    peak_lr: float,
    device: torch.device,
    bar: Bar,
    checkpoints: Checkpoints,
    replace: bool = False,
    names: Callable[[Mapping[str, Any]], Sequence[str]],
    stop: StopRequest,
    loggers: Sequence[Logger] = (),
    special: tuple[Iterable[nn.Parameter], float] = ((), 1.0),
    team: Ranks | None = None,
) -> History:
    """Train `network` in place with Adam (network.md), from its last checkpoint if there is one.

    `terms` runs the network; it is called under autocast of `training.precision`. `names` says
    which samples a batch holds. `special` names parameters and the multiplier of their learning
    rate. Checkpoints are written every `checkpoints.every` steps and after every epoch; a continued
    run ends with the weights that an uninterrupted one ends with, bit for bit where the
    device computes the same twice. `replace` begins anew instead of refusing other checkpoints.

    Raises InputError where a loss term is no longer finite (the last checkpoint is then from
    before), Stopped when `stop` says that it was asked for, after a checkpoint.
    """
    team = team or Ranks()
    network.train()
    optimiser = _adam(network, training, peak_lr, device, special)
    precision = PRECISION[training.precision]
    scaler = torch.amp.GradScaler(
        device.type, enabled=precision is torch.float16 and device.type == "cuda"
    )
    history, now = History(), _Epoch()
    found = checkpoints.load(replace=replace)
    if found is not None:
        history, now = _restore(found, network, optimiser, scaler, device)
        bar.reach(history.steps)
        log(f"going on after step {history.steps}, from {checkpoints.folder}")

    def save() -> None:
        late.flush()  # what is saved is known to be finite
        for logger in loggers:
            logger.flush()
        if team.rank == 0:
            state = _state(network, optimiser, scaler, history, now)
            checkpoints.save(history.steps, state)

    late = _Late(loggers, bar, checkpoints)
    while now.number < training.epochs and history.steps != training.max_steps:
        lr = learning_rate(now.number, peak_lr, training.epochs, training.warmup_epochs)
        for group in optimiser.param_groups:
            group["lr"] = lr * group["scale"]
        started, before = time.perf_counter(), now.seconds
        for batch in batches(now.number, now.done):
            with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
                losses, metrics = terms(batch)
            total = torch.stack(list(losses.values())).sum()
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(total).backward()
            scaler.step(optimiser)
            scaler.update()
            values = losses | {"total": total} | metrics
            for name, value in values.items():
                # Summed on the device: reading a value here would wait for it at every step.
                now.sums[name] = now.sums.get(name, 0) + value.detach().float()
            history.steps += 1
            now.done += 1
            now.images += len(batch["row"]) * team.size
            now.seconds = before + time.perf_counter() - started
            late.add(history.steps, now.number, values, [*losses, "total"], names(batch))
            bar.advance(1)
            if history.steps == training.max_steps:
                break
            if team.any(stop.signal is not None):
                save()
                _stop(stop.signal, history.steps, checkpoints)
            if history.steps % checkpoints.every == 0:
                save()
        late.flush()
        if now.done:
            means = {name: value.item() / now.done for name, value in now.sums.items()}
            rate = now.images / max(now.seconds, 1e-9)
            row = {"epoch": now.number, "lr": lr, **means, "images_per_s": rate}
            history.rows.append(row)
            for logger in loggers:
                logger.epoch(history)
        now = _Epoch(now.number + 1)
        save()
    network.eval()
    return history


def _adam(
    network: nn.Module,
    training: Training,
    peak_lr: float,
    device: torch.device,
    special: tuple[Iterable[nn.Parameter], float],
) -> torch.optim.Adam:
    chosen = {id(parameter) for parameter in special[0]}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in chosen], "scale": 1.0},
        {"params": [p for p in trained if id(p) in chosen], "scale": special[1]},
    ]
    return torch.optim.Adam(
        [group for group in groups if group["params"]],
        lr=peak_lr,
        weight_decay=training.weight_decay,
        fused=True,
    )


def _state(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    history: History,
    now: _Epoch,
) -> State:
    return {
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "scaler": scaler.state_dict(),
        "steps": history.steps,
        "rows": history.rows,
        "epoch": vars(now),
    }


def _restore(
    state: State,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    device: torch.device,
) -> tuple[History, _Epoch]:
    """Put back a saved state. Training draws no random numbers: there is no generator in it."""
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    scaler.load_state_dict(state["scaler"])
    now = _Epoch(**state["epoch"])
    now.sums = {name: value.to(device) for name, value in now.sums.items()}
    return History(state["steps"], state["rows"]), now


def _stop(number: int | None, step: int, checkpoints: Checkpoints) -> None:
    name = signal.Signals(number).name if number is not None else "another process"
    raise Stopped(
        f"stopped by {name} after step {step}, saved in {checkpoints.folder}; the same command "
        "goes on from there",
        128 + (number or signal.SIGTERM),
    )


class _Late:
    """Looks at the values of a step when they are there anyway, so that no step waits for them."""

    steps = 2
    """How many steps later: the device is done by then."""

    def __init__(self, loggers: Sequence[Logger], bar: Bar, checkpoints: Checkpoints) -> None:
        self.loggers, self.bar, self.checkpoints = loggers, bar, checkpoints
        self._queue: deque[tuple[int, int, list[str], int, torch.Tensor, Any, Sequence[str]]]
        self._queue = deque()

    def add(
        self,
        step: int,
        epoch: int,
        values: Values,
        losses: Sequence[str],
        names: Sequence[str],
    ) -> None:
        """values: of a step, first its `losses`; their copy to the CPU is begun here."""
        stacked = torch.stack([value.detach().float() for value in values.values()])
        event = None
        if stacked.device.type == "cuda":
            stacked = stacked.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._queue.append((step, epoch, [*values], len(losses), stacked, event, names))
        while len(self._queue) > self.steps:
            self._look()

    def flush(self) -> None:
        """Look at everything."""
        while self._queue:
            self._look()

    def _look(self) -> None:
        step, epoch, names, losses, stacked, event, samples = self._queue.popleft()
        if event is not None:
            event.synchronize()
        values = dict(zip(names, stacked.tolist(), strict=True))
        bad = [name for name in names[:losses] if not abs(values[name]) < float("inf")]
        if bad:
            self._diverged(step, epoch, bad, values, samples)
        shown = "  ".join(f"{name} {values[name]:.3f}" for name in names[:losses])
        self.bar.note(f"epoch {epoch + 1}  {shown}")
        for logger in self.loggers:
            logger.step(step, values)

    def _diverged(
        self,
        step: int,
        epoch: int,
        bad: Sequence[str],
        values: Mapping[str, float],
        samples: Sequence[str],
    ) -> None:
        what = ", ".join(f"{name} is {values[name]}" for name in bad)
        more = f" and {len(samples) - 8} more" if len(samples) > 8 else ""
        raise InputError(
            f"training diverged at step {step} (epoch {epoch + 1}): {what}. Its samples: "
            f"{', '.join(samples[:8])}{more}. Checkpoints from before, if any, are kept in "
            f"{self.checkpoints.folder}; try a lower learning rate or precision float32 "
            "(--set train_student.lr=…, or train_teacher.lr)"
        )
