"""Small SVG charts whose colours are the page's: they follow dark and light.

No attribute `style` and no script: the page's content security policy forbids both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup


class Line(NamedTuple):
    """A curve; `kind` is its CSS class, which gives colour and dashes."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: str = "s0"


class _Frame(NamedTuple):
    """The plotting area in user units, and the ranges that it shows."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return self.left + across * self.width, self.top + (1 - up) * self.height


def chart(
    title: str,
    description: str,
    lines: Sequence[Line],
    *,
    name: str,
    x_label: str,
    y_label: str = "",
    top: float | None = None,
    size: tuple[int, int] = (440, 280),
) -> Markup:
    """Curves over a common x axis, the y axis from 0 to `top` or what the values need.

    name: unique in the page, for ids; size: width and height in user units. Points that aren't
    finite are left out. Title and description are read out instead of the drawing.
    """
    lines = [_finite(line) for line in lines]
    xs = [x for line in lines for x in line.x] or [0.0, 1.0]
    ys = [y for line in lines for y in line.y] or [1.0]
    y_marks = ticks(min(0.0, *ys), top if top is not None else max(ys))
    left = 14 + 7 * max(len(number(mark)) for mark in y_marks)
    highest = y_marks[-1] if top is None else top
    width, height = size
    frame = _Frame(
        left,
        10 if not y_label else 24,
        width - left - 14,
        height - (34 if not y_label else 48) - 10,
        (min(xs), max(xs)),
        (y_marks[0], highest or 1.0),
    )
    parts = [_axes(frame, y_marks, _whole(ticks(*frame.x, count=6), frame.x), x_label, size)]
    if y_label:
        parts.append(Markup('<text class="axis" x="2" y="13">{}</text>').format(y_label))
    parts += [_curve(frame, line) for line in lines]
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-labelledby="{n}-t {n}-d">'
        '<title id="{n}-t">{title}</title><desc id="{n}-d">{text}</desc>{parts}</svg>'
    ).format(w=width, h=height, n=name, title=title, text=description, parts=Markup("").join(parts))


def spark(values: Sequence[float], top: float, kind: str = "s0") -> Markup:
    """A curve of the size of a word, from 0 to `top`; the numbers beside it say what it says."""
    frame = _Frame(2, 3, 92, 18, (0, max(len(values) - 1, 1)), (0.0, top or 1.0))
    curve = _curve(frame, _finite(Line("", range(len(values)), values, kind)))
    return Markup(
        '<svg class="spark" viewBox="0 0 96 24" aria-hidden="true" focusable="false">{}</svg>'
    ).format(curve)


def interval(value: float, low: float, high: float, top: float, kind: str = "s0") -> Markup:
    """A dot on its interval, on a scale from 0 to `top`; nothing where one isn't finite."""
    if not all(map(math.isfinite, (value, low, high))):
        return Markup("")
    frame = _Frame(4, 2, 112, 12, (0.0, top or 1.0), (0.0, 1.0))
    (a, y), (b, _), (dot, _) = (frame.at(x, 0.5) for x in (low, high, value))
    return Markup(
        '<svg class="interval {k}" viewBox="0 0 120 16" aria-hidden="true" focusable="false">'
        '<path class="grid" d="M4 8H116"/>'
        '<path class="line" d="M{a} {u}V{l}M{a} {y}H{b}M{b} {u}V{l}"/>'
        '<circle class="dot" cx="{dot}" cy="{y}" r="3.5"/></svg>'
    ).format(k=kind, a=_n(a), b=_n(b), y=_n(y), dot=_n(dot), l=_n(y - 3), u=_n(y + 3))


def bar(share: float, kind: str = "s0") -> Markup:
    """A share 0..1 as a bar."""
    return Markup(
        '<svg class="bar {}" viewBox="0 0 60 10" aria-hidden="true" focusable="false">'
        '<rect class="track" width="60" height="10" rx="2"/>'
        '<rect class="fill" width="{}" height="10" rx="2"/></svg>'
    ).format(kind, _n(60 * min(max(share, 0.0), 1.0)))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that span low..high, about `count` of them."""
    if not high > low:
        high = low + 1.0
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number as short as an axis or a table wants it: four significant digits at most."""
    if not math.isfinite(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}"
    text = f"{value:.4g}"
    return text.replace("-", "−")


def _axes(
    frame: _Frame, y_marks: Iterable[float], x_marks: Iterable[float], label: str, size: tuple
) -> Markup:
    drawn = Markup("")
    for mark in y_marks:
        x, y = frame.at(frame.x[0], mark)
        if y < frame.top - 1:
            continue
        drawn += Markup('<path class="grid" d="M{} {}h{}"/>').format(_n(x), _n(y), _n(frame.width))
        drawn += Markup('<text class="tick" text-anchor="end" x="{}" y="{}">{}</text>').format(
            _n(x - 6), _n(y + 4), number(mark)
        )
    for mark in x_marks:
        x, y = frame.at(mark, frame.y[0])
        drawn += Markup('<text class="tick" text-anchor="middle" x="{}" y="{}">{}</text>').format(
            _n(x), _n(y + 17), number(mark)
        )
    middle = frame.left + frame.width / 2
    return drawn + Markup('<text class="axis" text-anchor="middle" x="{}" y="{}">{}</text>').format(
        _n(middle), size[1] - 4, label
    )


def _curve(frame: _Frame, line: Line) -> Markup:
    points = [frame.at(x, y) for x, y in zip(line.x, line.y, strict=True)]
    if not points:
        return Markup("")
    path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
    x, y = points[-1]
    return Markup(
        '<g class="{}"><path class="line" d="{}"/><circle class="dot" cx="{}" cy="{}" r="3"/></g>'
    ).format(line.kind, path, _n(x), _n(y))


def _finite(line: Line) -> Line:
    pairs = [
        (float(x), float(y))
        for x, y in zip(line.x, line.y, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]
    return line._replace(x=[x for x, _ in pairs], y=[y for _, y in pairs])


def _whole(marks: Sequence[float], within: tuple[float, float]) -> list[float]:
    """Ranks and epochs are whole numbers; of the marks those that the axis reaches."""
    kept = [mark for mark in marks if within[0] <= mark <= within[1] and mark == round(mark)]
    return kept if within[0] in kept else [within[0], *(m for m in kept if m > within[0] + 1)]


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
