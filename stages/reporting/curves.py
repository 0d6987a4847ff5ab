"""Curves of studies: mAP against what a study varies, a panel for each stream."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from deskpro.stages.reporting import figures
from deskpro.stages.reporting.figures import COLOURS

_SIZE = 250, 250
"""Of a panel, in units of the SVG."""
_DASHES = ("--", "-", ":", "-.")
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
    top = min(max(tops) * 1.05, 100)  # an interval of few replicates ends beyond any mAP
    for axes, (stream, lines) in zip(every, streams.items(), strict=True):
        _panel(axes, stream, lines, top)
    every[0].set_ylabel("mAP, %", fontsize=11, color=COLOURS["ink"])
    figure.supxlabel(f"{label} (logarithmic)", fontsize=11, color=COLOURS["ink"])
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=COLOURS["ink"])
    return figure


def _panel(axes: Axes, stream: str, lines: Mapping[str, Sequence[Level]], top: float) -> None:
    colour, ends = figures.colour_of(stream), {}
    for (name, levels), dash in zip(lines.items(), cycle(_DASHES)):
        levels = sorted(levels)
        places, means = [x.at for x in levels], [x.mean for x in levels]
        axes.plot(places, means, dash, color=colour, linewidth=2.25, marker="o", markersize=4)
        lows, highs = [x.low for x in levels], [x.high for x in levels]
        axes.fill_between(places, lows, highs, color=colour, alpha=0.15, linewidth=0)
        ends[name] = places[-1], means[-1], colour
    figures.name_lines(axes, ends, gap=top * 13 / 170, top=top, size=11)
    marks = sorted({x.at for levels in lines.values() for x in levels})
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(marks, [figures.number(mark) for mark in marks])
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_ylim(0, top)
    axes.set_title(stream, loc="left", fontsize=11, color=COLOURS["ink"])
    figures.strip_axes(axes, 10)
