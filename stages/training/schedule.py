"""The published learning-rate schedule (network.md)."""

from __future__ import annotations

import math


def default_peak(batch: int) -> float:
    """The published peak learning rate for P·K = `batch` images: 6e-4·√(batch/20)."""
    return 6e-4 * (batch / 20) ** 0.5


def learning_rate(epoch: int, peak: float, epochs: int, warmup: int) -> float:
    """The rate of an epoch counted from 0: a linear warm-up, then a cosine from peak to peak/1000.

    epoch < warmup: peak·(epoch+1)/warmup. After that the cosine reaches its end in the last epoch.
    """
    if epoch < warmup:
        return peak * (epoch + 1) / warmup
    floor = peak / 1000
    span = max(epochs - warmup - 1, 1)
    return floor + (peak - floor) * (1 + math.cos(math.pi * (epoch - warmup) / span)) / 2
