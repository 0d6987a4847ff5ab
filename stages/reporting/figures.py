"""Charts by matplotlib: SVG inside the page, in the colours of its light or dark mode, or files.

Curves, points and rows are labelled where they are, without a legend.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from deskpro.cache.files import write_aside

COLOURS = {
    "ink": "#1b1d21", "soft": "#575d67", "rule": "#d6d9de",
    "face": "#2a6fdb", "body": "#b45309", "all": "#0a4f3c", "face_hr": "#780f78",
}  # fmt: skip
"""CSS variable → its light value in report.css. Files show the value, SVGs of the page refer to the
variable. The streams' colours differ in every form of colour blindness."""
_VARIABLES = {value: f"var(--{name})" for name, value in COLOURS.items()}
_STEPS = (1, 2, 5, 10)
"""Between the marks of an axis, times a power of ten."""
_DASHES = {"face": ":", "body": "--", "face_hr": "-."}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_PIXEL = 1 / 72
"""Inches: a unit of the SVG."""
PAGE = 316
"""Width of a chart of the page, in these units: that of a phone's screen, so that text there is as
large as it is drawn."""
TEXT = 12
"""Size of a chart's text, in these units."""
_LINE = 14
"""Height of a line of text in these units."""
_GAP = 100 * _LINE / 190
"""Between lines of text, in per cent of the height of axes in a chart that is 280 units high."""
_RANKS = (1, 5, 10, 20)
"""Marks of a CMC."""


class Interval(NamedTuple):
    """A row of a chart: its group, its name, a value and the ends of its interval, nan for none.

    Values are per cent; `stream` gives the colour.
    """

    group: str
    name: str
    stream: str
    value: float
    low: float
    high: float


class Point(NamedTuple):
    """A labelled point; `spread` is half its error bar, nan for none."""

    name: str
    x: float
    y: float
    spread: float


def cmc(
    curves: Mapping[str, Sequence[float]],
    title: str,
    ranks: Sequence[int] = (),
    labels: Mapping[str, str] | None = None,
    width: int = 440,
) -> Figure:
    """Curves by stream; each is the share (0..1) of queries matched at rank 1, 2, …

    ranks: marked on the axis beside 1, 5, 10 and 20; labels: of streams, instead of their names.
    """
    last = max((len(shares) for shares in curves.values()), default=1)
    figure, axes = new_axes(title, (width, 280))
    for name, shares in curves.items():
        axes.plot(
            range(1, len(shares) + 1), 100 * np.asarray(shares), linewidth=2.25, clip_on=False,
            color=colour_of(name), linestyle=_DASHES.get(name, "-"),
        )  # fmt: skip
    axes.set(xlabel="rank", ylabel="matching rate, %", ylim=(0, 100), xlim=(1, max(last, 2)))
    axes.set_xticks([rank for rank in sorted({*_RANKS, *ranks}) if rank <= last])
    ends = {
        (labels or {}).get(name, name): (len(shares), 100 * shares[-1], colour_of(name))
        for name, shares in curves.items()
    }
    name_lines(axes, ends)
    return figure


def history_chart(
    title: str, epochs: Sequence[float], values: Sequence[float], colour: str
) -> Figure:
    """A quantity by epoch, on a scale that includes 0; colour: a name of `COLOURS`."""
    figure, axes = new_axes(title, (PAGE, 190))
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


def intervals(
    rows: Sequence[Interval],
    title: str,
    label: str = "mAP, %",
    *,
    zero: bool = False,
    width: int | None = None,
) -> Figure:
    """A row for each value with its interval, under the name of its group.

    zero: values are differences, with a sign, and a line marks 0; width: in which names of groups
    are wrapped, as wide as names need unless given.
    """
    longest = max(len(row.name) for row in rows)
    room = width or 440 + 6 * max(longest - 20, 0)
    groups = {row.group: textwrap.fill(row.group, round((room - 80) / 6)) for row in rows}
    heights, heads, place = {}, {}, 0.0
    for group, text in groups.items():
        lines = text.count("\n") + bool(group)
        heads[text], place = place + max(lines - 1, 0) / 2, place + lines
        for row in rows:
            if row.group == group:
                heights[row], place = place, place + 1
        place += 0.4
    figure, axes = new_axes(title, (room, round(75 + 1.4 * _LINE * place)))
    for row, height in heights.items():
        colour, ends = colour_of(row.stream), np.nan_to_num([row.low, row.high], nan=row.value)
        axes.plot(ends, [height, height], color=colour, linewidth=2.25, solid_capstyle="butt")
        axes.plot([row.value], [height], color=colour, marker="o", markersize=6)
        axes.annotate(
            f"{row.value:{'+' * zero}.1f}", (ends[1], height), (7, 0), "data", "offset points",
            annotation_clip=False, va="center", fontsize=TEXT, color=COLOURS["ink"],
        )  # fmt: skip
    for group, height in heads.items():
        axes.text(
            0, height, group, transform=axes.get_yaxis_transform(), va="center", fontsize=TEXT,
            color=COLOURS["ink"], parse_math=False,
        )  # fmt: skip
    if zero:
        axes.axvline(0, color=COLOURS["ink"], linewidth=1)
    axes.set_yticks([*heights.values()], [row.name for row in heights], parse_math=False)
    axes.set(xlabel=label, ylim=(place - 0.9, -0.7))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=COLOURS["rule"], linewidth=1)
    return figure


def scatter(points: Sequence[Point], title: str, label: str, stream: str) -> Figure:
    """mAP against a cost, with the line of those that no cheaper point beats.

    label: of the cost; stream: gives the colour.
    """
    figure, axes = new_axes(title, (560, 360))
    colour, front = colour_of(stream), _front(points)
    axes.step(
        [point.x for point in front], [point.y for point in front], where="post",
        color=COLOURS["rule"], linewidth=1.5, zorder=1,
    )  # fmt: skip
    points = _side_by_side(points)
    for point in points:
        spread = None if math.isnan(point.spread) else point.spread
        axes.errorbar(
            point.x, point.y, spread, fmt="o", markersize=6, capsize=3, color=colour, elinewidth=1.5
        )
    axes.set(xlabel=label, ylabel="mAP, %")
    axes.margins(0.12)
    _label_points(figure, axes, points)
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


def write_figure(figure: Figure, path: Path) -> None:
    """Write the figure in its light colours, as PATH.png and PATH.svg; equal figures, equal bytes.

    path: without a suffix.
    """
    with write_aside(path.with_suffix(".png")) as aside:
        figure.savefig(aside, format="png", dpi=120)
    rules = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name})
    with rules, write_aside(path.with_suffix(".svg")) as aside:
        figure.savefig(aside, format="svg", metadata=_NO_METADATA)


def apart(
    wanted: Sequence[float], gap: float, top: float = math.inf, bottom: float = -math.inf
) -> list[float]:
    """Places for labels, at least `gap` apart, from `bottom` to `top`, as near as can be to where
    they are wanted (least squares: isotonic regression of what remains without the gaps). Where
    there are too many, they go beyond `bottom`."""
    order = np.argsort(wanted, kind="stable")
    blocks: list[tuple[float, int]] = []  # sum and number of labels that touch
    for i, index in enumerate(order):
        total, count = wanted[index] - i * gap, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            total, count = total + blocks[-1][0], count + blocks.pop()[1]
        blocks.append((total, count))
    level = np.repeat([total / count for total, count in blocks], [n for _, n in blocks])
    level = np.minimum(np.maximum(level, bottom), top - gap * (len(order) - 1))
    places = level + gap * np.arange(len(order))
    return [float(place) for place in places[np.argsort(order)]]


def name_lines(
    axes: Axes,
    ends: Mapping[str, tuple[float, float, str]],
    *,
    gap: float = _GAP,
    top: float = 100,
    offset: int = 7,
    size: int = TEXT,
) -> None:
    """Write the names of lines beside their ends, none below 0, where the axis has its label.

    Args:
        ends: name → x and y of the end, and the colour.
        gap, top: see `apart`.
        offset, size: of the text, in units of the SVG.
    """
    heights = apart([y for _, y, _ in ends.values()], gap, top, bottom=0)
    for (name, (x, _, colour)), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            name, (x, height), (offset, 0), "data", "offset points", annotation_clip=False,
            va="center", fontsize=size, color=colour,
        )  # fmt: skip


def colour_of(stream: str) -> str:
    """The light colour of a stream; that of text for others."""
    return COLOURS.get(stream, COLOURS["ink"])


def number(value: float) -> str:
    """A number as short as an axis or a table wants it: four significant digits at most."""
    if not math.isfinite(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}"
    return f"{value:.4g}".replace("-", "−")


def new_axes(title: str, size: tuple[int, int]) -> tuple[Figure, Axes]:
    """Axes with a horizontal grid alone; size: width and height in units of the SVG."""
    figure = Figure(figsize=(size[0] * _PIXEL, size[1] * _PIXEL), layout="constrained")
    axes = figure.subplots()
    title = textwrap.fill(title, round(size[0] / 7.5))
    axes.set_title(
        title, loc="left", fontsize=TEXT + 1, color=COLOURS["ink"], pad=9, parse_math=False
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize=TEXT, color=COLOURS["ink"])
    strip_axes(axes)
    return figure, axes


def strip_axes(axes: Axes, size: int = TEXT) -> None:
    """Leave nothing of the axes but a horizontal grid and the labels of marks, of so many units."""
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=size, labelcolor=COLOURS["soft"])
    axes.grid(axis="y", color=COLOURS["rule"], linewidth=1)
    axes.set_axisbelow(True)


def _curve(
    axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, *, linewidth: float
) -> None:
    """A line that ends in a dot."""
    axes.plot(
        x, y, color=COLOURS[colour], linewidth=linewidth, clip_on=False,
        marker="o", markersize=5, markevery=[-1],
    )  # fmt: skip


def _front(points: Sequence[Point]) -> list[Point]:
    """The points that are better than every cheaper one, from the cheapest on."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def _side_by_side(points: Sequence[Point]) -> list[Point]:
    """Points of equal cost a little apart, so that their error bars don't hide each other."""
    costs = [point.x for point in points]
    step = 0.012 * (max(costs) - min(costs))
    return [
        point._replace(
            x=point.x + (costs[:i].count(point.x) - (costs.count(point.x) - 1) / 2) * step
        )
        for i, point in enumerate(points)
    ]


def _label_points(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Name each point beside it, where neither a name nor a point is, with a line if that is far.

    The layout is fixed before: a name finds its place in pixels.
    """
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    taken = []
    for point in points:
        spread = np.nan_to_num(point.spread)
        ends = axes.transData.transform([(point.x, point.y - spread), (point.x, point.y + spread)])
        taken.append(Bbox(ends).padded(6))
    steps = (0, 1, -1, 2, -2, 3, -3, 4, -4)
    for point in points:
        for rise, side in ((rise, side) for rise in steps for side in (1, -1)):
            line = {"arrowstyle": "-", "color": COLOURS["soft"], "linewidth": 0.75, "shrinkB": 4}
            text = axes.annotate(
                point.name, (point.x, point.y), (9 * side, rise * _LINE), "data", "offset points",
                ha="left" if side > 0 else "right", va="center", fontsize=10,
                color=COLOURS["ink"], parse_math=False, arrowprops=line if abs(rise) > 1 else None,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            )  # fmt: skip
            box = text.get_window_extent(renderer)
            inside = figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1)
            if inside and not box.count_overlaps(taken):
                break
            text.remove()
        else:
            continue  # no room: the table has it
        taken.append(box)


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
