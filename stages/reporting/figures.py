"""Charts by matplotlib: SVG inside the page, in the colours of its light or dark mode, or PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deskpro.cache.files import write_aside

COLOURS = {
    "ink": "#1b1d21", "soft": "#575d67", "rule": "#d6d9de",
    "face": "#1a56b0", "body": "#a44a00", "all": "#0a6b3b",
}  # fmt: skip
"""CSS variable → its light value in report.css. PNGs show the value, SVGs refer to the variable."""
_VARIABLES = {value: f"var(--{name})" for name, value in COLOURS.items()}
_STEPS = (1, 2, 5, 10)
"""Between the marks of an axis, times a power of ten."""
_DASHES = {"face": ":", "body": "--"}
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 11, "labelcolor": COLOURS["ink"]}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_PIXEL = 1 / 72
"""Inches: a unit of the SVG."""


class Interval(NamedTuple):
    """A bar: its group on the x axis, its series, a share 0..1 and the ends of its interval."""

    group: str
    series: str
    value: float
    low: float
    high: float


def cmc(curves: Mapping[str, Sequence[float]], title: str = "queries matched, %") -> Figure:
    """Curves by name; each is the share (0..1) of queries matched at rank 1, 2, …"""
    figure, axes = _axes(title, (440, 270))
    for i, (name, shares) in enumerate(curves.items()):
        ranks = range(1, len(shares) + 1)
        axes.plot(
            ranks, 100 * np.asarray(shares), label=name, linewidth=2.25, clip_on=False,
            color=COLOURS.get(name, f"C{i}"), linestyle=_DASHES.get(name, "-"),
        )  # fmt: skip
    axes.set(xlabel="rank", ylim=(0, 100))
    axes.legend(loc="lower right", **_LEGEND)
    last = max((len(shares) for shares in curves.values()), default=1)
    marks = MaxNLocator(6, steps=_STEPS, integer=True).tick_values(1, last)
    axes.set_xticks([1, *(mark for mark in marks if 1 < mark <= last)])
    return figure


def history_chart(
    title: str, epochs: Sequence[float], values: Sequence[float], colour: str
) -> Figure:
    """A quantity by epoch, on a scale that includes 0; colour: a name of `COLOURS`."""
    figure, axes = _axes(title, (300, 190))
    _curve(axes, epochs, values, colour, linewidth=2.25)
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    axes.set(xlabel="epoch", ylim=(low, high + 0.1 * (high - low) or 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=_STEPS))
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    return figure


def spark(values: Sequence[float], top: float, colour: str) -> Figure:
    """A curve of the size of a word on a scale from 0 to `top`; colour: a name of `COLOURS`."""
    figure = Figure(figsize=(96 * _PIXEL, 24 * _PIXEL))
    axes = figure.add_axes((0.03, 0.15, 0.94, 0.7))
    _curve(axes, range(len(values)), values, colour, linewidth=1.75)
    axes.set_ylim(0, top or 1.0)
    axes.axis("off")
    return figure


def bars(rows: Sequence[Interval], title: str) -> Figure:
    """Per cent with intervals: a group of bars for each `group`, one for each `series` in it."""
    groups = [*dict.fromkeys(row.group for row in rows)]
    names = [*dict.fromkeys(row.series for row in rows)]
    figure, axes = _axes(title, (max(440, 26 * len(groups) * (len(names) + 1)), 240))
    width = 0.8 / len(names)
    drawn = []
    for i, name in enumerate(names):
        mine = [row for row in rows if row.series == name]
        places = [groups.index(row.group) + (i - (len(names) - 1) / 2) * width for row in mine]
        value, *ends = 100 * np.array([row[2:] for row in mine]).T
        group = axes.bar(
            places, value, 0.9 * width, yerr=np.abs(ends - value), capsize=3,
            color=COLOURS.get(name, f"C{i}"), ecolor=COLOURS["ink"],
        )  # fmt: skip
        drawn.append(group.patches[0])
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(bottom=0)
    labels = [name.replace("$", r"\$") for name in names]  # no formulas
    figure.legend(drawn, labels, loc="outside lower center", ncols=min(len(names), 4), **_LEGEND)
    return figure


def to_svg(figure: Figure, name: str, title: str = "", text: str = "") -> Markup:
    """The figure as inline SVG; equal figures of equal names give equal text.

    The page's content security policy forbids the attribute `style`, so its properties become
    attributes of their own.

    Args:
        name: unique in the page; ids are made from it.
        title, text: read out by a screen reader; without a title the figure is hidden from it.
    """
    buffer = io.StringIO()
    figure.patch.set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        _use_attributes(element)
    for child in [child for child in root if child.tag in ("metadata", "defs")]:
        root.remove(child)  # only matplotlib's style sheet; markers are defined inside the groups
    if title:
        labels = {"class": "chart", "role": "img", "aria-labelledby": f"{name}-t {name}-d"}
        for suffix, words in (("d", text), ("t", title)):
            label = ElementTree.Element({"d": "desc", "t": "title"}[suffix], id=f"{name}-{suffix}")
            label.text = words
            root.insert(0, label)
    else:
        labels = {"class": "spark", "aria-hidden": "true", "focusable": "false"}
    root.attrib = {**labels, "viewBox": root.attrib["viewBox"]}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure in its light colours."""
    with write_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=120)


def number(value: float) -> str:
    """A number as short as an axis or a table wants it: four significant digits at most."""
    if not math.isfinite(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}"
    return f"{value:.4g}".replace("-", "−")


def _axes(title: str, size: tuple[int, int]) -> tuple[Figure, Axes]:
    """Axes with a horizontal grid alone; size: width and height in units of the SVG."""
    figure = Figure(figsize=(size[0] * _PIXEL, size[1] * _PIXEL), layout="constrained")
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=12, color=COLOURS["ink"])
    axes.xaxis.label.set(fontsize=11, color=COLOURS["ink"])
    axes.tick_params(length=0, labelsize=11, labelcolor=COLOURS["soft"])
    axes.grid(axis="y", color=COLOURS["rule"], linewidth=1)
    axes.set_axisbelow(True)
    return figure, axes


def _curve(
    axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, *, linewidth: float
) -> None:
    """A line that ends in a dot."""
    axes.plot(
        x, y, color=COLOURS[colour], linewidth=linewidth, clip_on=False,
        marker="o", markersize=5, markevery=[-1],
    )  # fmt: skip


def _use_attributes(element: ElementTree.Element) -> None:
    """Replace `style`, colours by the page's variables; drop fonts, white space and unused ids."""
    element.tail = None
    element.text = element.text if element.tag == "text" else None
    style = element.attrib.pop("style", "")
    for name, _, value in (part.partition(":") for part in style.split(";") if part):
        if not name.strip().startswith("font") or name.strip() == "font-size":
            element.set(name.strip(), _VARIABLES.get(value.strip(), value.strip()))
    if element.tag == "g":
        element.attrib.pop("id", None)
    element.attrib.pop("clip-path", None)
    link = element.attrib.pop("{http://www.w3.org/1999/xlink}href", None)
    if link is not None:
        element.set("href", link)
