"""The CMC as an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deskpro.cache.files import write_aside


def write_cmc(curves: Mapping[str, Sequence[float]], title: str, path: Path) -> None:
    """Write a PNG of curves by name, each the shares (0..1) matched at rank 1, 2, …"""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, shares in curves.items():
        axes.plot(range(1, len(shares) + 1), 100 * np.asarray(shares), marker=".", label=name)
    axes.set(xlabel="rank", ylabel="queries matched (%)", ylim=(0, 100), title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=120)
