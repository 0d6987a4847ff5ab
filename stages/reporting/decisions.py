"""Charts of what a score decides: who is accepted, and what log-likelihood ratios mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from deskpro.stages.reporting import figures

_STYLES = {
    "face-face": ("face", ":"),
    "face-none": ("face_hr", "-."),
    "none-none": ("body", "--"),
    "all": ("all", "-"),
}
"""Face case → a name of `figures.COLOURS`, and the line."""


def charts(verification: Mapping[str, Mapping[str, Any]]) -> list[Markup]:
    """ROC and reliability of a stream; without those of which nothing is known.

    Args:
        verification: face case → its numbers, as metrics.json has them.
    """
    curves = {name: n["ROC"] for name, n in verification.items() if len(n["ROC"]["FAR"]) > 1}
    bins = {name: n["calibration"].get("bins", []) for name, n in verification.items()}
    bins = {name: found for name, found in bins.items() if found}
    drawn = []
    if curves:
        text = "The accept rate of pairs of one person against that of two. Numbers: see the table."
        drawn.append(figures.to_svg(_roc(curves), "roc", "ROC", text))
    if bins:
        text = "The share of pairs of one person against the probability that scores say."
        drawn.append(figures.to_svg(_reliability(bins), "reliability", "Calibration", text))
    return drawn


def _roc(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    figure, axes = figures.new_axes("ROC and its 95 % band over identities", (figures.PAGE, 280))
    ends = {}
    for name, curve in curves.items():
        colour, line = _style(name)
        rates, low, high = ([100 * x for x in curve[key]] for key in ("TAR", "low", "high"))
        axes.plot(curve["FAR"], rates, line, color=colour, linewidth=2.25)
        axes.fill_between(curve["FAR"], low, high, color=colour, alpha=0.15, linewidth=0)
        ends[name] = rates[-1], colour
    least = min(curve["FAR"][-1] for curve in curves.values())
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    marks = [10.0**-power for power in range(8) if 10.0**-power >= least]
    axes.set_xticks(marks, [figures.number(100 * mark) for mark in marks])
    axes.set(ylabel="true accept rate, %", ylim=(0, 100))
    axes.set_xlabel("false accept rate, %, stricter to the right")
    axes.tick_params(axis="x", pad=7)  # or `100` touches the 0 of the other axis
    axes.set_xlim(1, least)  # the strict end, where curves part, has their names
    figures.name_lines(axes, {name: (least, *end) for name, end in ends.items()}, offset=9)
    return figure


def _reliability(bins: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    figure, axes = figures.new_axes(
        "Calibration: what scores say, and what is so", (figures.PAGE, 280)
    )
    axes.plot([0, 100], [0, 100], color=figures.COLOURS["rule"], linewidth=1.5)
    ends = {}
    for name, found in bins.items():
        colour, line = _style(name)
        stated, true = ([100 * row[i] for row in found] for i in (1, 2))
        axes.plot(stated, true, line, color=colour, linewidth=2.25)
        sizes = [8 + 120 * row[0] for row in found]
        axes.scatter(stated, true, sizes, color=colour, zorder=3, clip_on=False)
        ends[name] = 100.0, true[-1], colour
    axes.set(xlabel="probability of one person at even priors, %", xlim=(0, 100), ylim=(0, 100))
    axes.set_ylabel("pairs of one person, %")
    figures.name_lines(axes, ends, offset=9)
    return figure


def _style(name: str) -> tuple[str, str]:
    colour, line = _STYLES[name]
    return figures.COLOURS[colour], line
