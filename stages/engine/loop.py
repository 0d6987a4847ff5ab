"""One readable training loop: batches in, loss terms summed, a row of history per epoch out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd
import torch
from torch import nn

from stages.engine.schedule import learning_rate
from stages.errors import InputError
from stages.options import Training
from stages.progress import Bar

PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Terms = Callable[[Mapping[str, Any]], dict[str, torch.Tensor]]
"""A batch → its weighted loss terms by name, each a scalar; their sum is minimised."""


class Batches(Protocol):
    """Anything that gives the batches of one epoch."""

    def __call__(self, epoch: int) -> Iterable[Mapping[str, Any]]: ...


@dataclass
class History:
    """What training did: steps taken and one row per epoch."""

    steps: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        """Columns epoch, lr, one per loss term, total, images_per_s; one row per epoch."""
        return pd.DataFrame(self.rows)


def fit(
    network: nn.Module,
    batches: Batches,
    terms: Terms,
    *,
    training: Training,
    peak_lr: float,
    device: torch.device,
    bar: Bar,
    special: tuple[Iterable[nn.Parameter], float] = ((), 1.0),
) -> History:
    """Train `network` in place with Adam (network.md).

    `terms` runs the network; it is called under autocast of `training.precision`. `special` names
    parameters and the multiplier of their learning rate. Raises InputError where a loss term is no
    longer finite: the weights are then worth nothing.
    """
    network.train()
    if training.channels_last:
        network.to(memory_format=torch.channels_last)  # activations follow the weights
    chosen = {id(parameter) for parameter in special[0]}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in chosen], "scale": 1.0},
        {"params": [p for p in trained if id(p) in chosen], "scale": special[1]},
    ]
    optimiser = torch.optim.Adam(
        [group for group in groups if group["params"]],
        lr=peak_lr,
        weight_decay=training.weight_decay,
        fused=device.type == "cuda",
    )
    precision = PRECISION[training.precision]
    scaler = torch.amp.GradScaler(
        device.type, enabled=precision is torch.float16 and device.type == "cuda"
    )
    history = History()
    for epoch in range(training.epochs):
        lr = learning_rate(epoch, peak_lr, training.epochs, training.warmup_epochs)
        for group in optimiser.param_groups:
            group["lr"] = lr * group["scale"]
        started, images, steps = time.perf_counter(), 0, 0
        sums: dict[str, torch.Tensor] = {}
        for batch in batches(epoch):
            if history.steps == training.max_steps:
                break
            with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
                losses = terms(batch)
            total = torch.stack(list(losses.values())).sum()
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(total).backward()
            scaler.step(optimiser)
            scaler.update()
            for name, loss in (losses | {"total": total}).items():
                # Summed on the device: reading a value here would wait for it at every step.
                sums[name] = sums.get(name, 0) + loss.detach().float()
            history.steps += 1
            steps += 1
            images += len(batch["row"])
            bar.advance(1)
        if steps:
            means = {name: value.item() / steps for name, value in sums.items()}
            _require_finite(means, epoch)
            rate = images / (time.perf_counter() - started)
            history.rows.append({"epoch": epoch, "lr": lr, **means, "images_per_s": rate})
            bar.note(f"epoch {epoch + 1}/{training.epochs}  loss {means['total']:.3f}")
        if history.steps == training.max_steps:
            break
    network.eval()
    return history


def _require_finite(means: Mapping[str, float], epoch: int) -> None:
    broken = [name for name, mean in means.items() if not torch.isfinite(torch.tensor(mean))]
    if broken:
        raise InputError(
            f"training diverged in epoch {epoch}: {', '.join(broken)} is not finite. "
            "Nothing was saved; try a lower learning rate or precision float32 "
            "(--set train_student.lr=…, or train_teacher.lr)"
        )
