"""Curves of studies: mAP against what a study varies, a panel for each stream."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from deskpro.stages.reporting.figures import COLOURS, apart, number

_SIZE = 250, 250
"""Of a panel, in units of the SVG."""
_DASHES = ("--", "-")
"""Of the lines, in their order."""


class Level(NamedTuple):
    """A mean at a place of the axis with the ends of its interval, nan for none; per cent."""

    at: float
    mean: float
    low: float
    high: float


def panels(streams: Mapping[str, Mapping[str, Sequence[Level]]], title: str, label: str) -> Figure:
    """A panel per stream with its lines by name, on one scale of mAP; the axis is logarithmic.

    label: of the axis. Lines are named at their ends.
    """
    width, height = _SIZE[0] * len(streams), _SIZE[1]
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    every = figure.subplots(1, len(streams), sharey=True, squeeze=False)[0]
    levels = [x for lines in streams.values() for line in lines.values() for x in line]
    tops = [value for x in levels for value in (x.mean, x.high) if math.isfinite(value)]
    top = max(tops) * 1.05
    for axes, (stream, lines) in zip(every, streams.items(), strict=True):
        _panel(axes, stream, lines, top)
    every[0].set_ylabel("mAP, %", fontsize=11, color=COLOURS["ink"])
    figure.supxlabel(f"{label} (logarithmic)", fontsize=11, color=COLOURS["ink"])
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=COLOURS["ink"])
    return figure


def _panel(axes: Axes, stream: str, lines: Mapping[str, Sequence[Level]], top: float) -> None:
    colour = COLOURS.get(stream, COLOURS["ink"])
    ends = {}
    for (name, levels), dash in zip(lines.items(), _DASHES, strict=False):
        levels = sorted(levels)
        places, means = [x.at for x in levels], [x.mean for x in levels]
        axes.plot(places, means, dash, color=colour, linewidth=2.25, marker="o", markersize=4)
        lows, highs = [x.low for x in levels], [x.high for x in levels]
        axes.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)
        ends[name] = levels[-1]
    heights = apart([x.mean for x in ends.values()], top * 13 / 170, top)
    for (name, last), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            name, (last.at, height), (7, 0), "data", "offset points", annotation_clip=False,
            va="center", fontsize=11, color=colour,
        )  # fmt: skip
    marks = sorted({x.at for levels in lines.values() for x in levels})
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(marks, [number(mark) for mark in marks])
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_ylim(0, top)
    axes.set_title(stream, loc="left", fontsize=11, color=COLOURS["ink"])
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=10, labelcolor=COLOURS["soft"])
    axes.grid(axis="y", color=COLOURS["rule"], linewidth=1)
    axes.set_axisbelow(True)
