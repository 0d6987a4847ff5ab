"""How numbers are written in tables, in per cent; and tables of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.text import Text


def spread(mean: float, sd: float) -> str:
    """A mean in per cent with its standard deviation; alone where that is nan."""
    return f"{mean:.1f}" if math.isnan(sd) else f"{mean:.1f} ± {sd:.1f}"


def percent(share: float | None) -> str:
    """A share of 0..1 with one digit; a dash for none, or nan."""
    return "–" if share is None or share != share else f"{100 * share:.1f}"


def within(share: float, low: float, high: float) -> str:
    """A share of 0..1 with the ends of its interval."""
    return f"{percent(share)} [{percent(low)}, {percent(high)}]"


def difference(value: float, low: float, high: float) -> str:
    """A signed difference in points with its interval; alone where that is nan."""
    return f"{value:+.1f}" + f" [{low:.1f}, {high:.1f}]" * (not math.isnan(low))


def best(values: Sequence[float]) -> list[bool]:
    """Which of several values are the highest; none where there is nothing to choose from."""
    known = [value for value in values if not math.isnan(value)]
    return [len(known) > 1 and value >= max(known) - 1e-9 for value in values]


def stacked(lines: Sequence[str], is_best: bool = False) -> Text:
    """The lines of a terminal's cell, the first bold where it is the best."""
    first, *others = lines or [""]
    return Text("\n").join([Text(first, "bold" if is_best else ""), *map(Text, others)])


def markdown(columns: Sequence[object], rows: Iterable[Sequence[object]], rule: str = "---") -> str:
    """A table of GitHub's Markdown. rule: of all columns but the first; `---:` aligns right."""
    lines = [columns, ["---", *[rule] * (len(columns) - 1)], *rows]
    texts = ([str(cell).replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in texts)
