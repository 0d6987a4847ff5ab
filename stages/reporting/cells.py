"""How numbers are written in tables of the terminal; all in per cent."""

from __future__ import annotations

import math
from collections.abc import Sequence


def spread(mean: float, sd: float) -> str:
    """A mean with its standard deviation; alone where that is nan."""
    return f"{mean:.1f}" if math.isnan(sd) else f"{mean:.1f} ± {sd:.1f}"


def within(value: float, low: float, high: float) -> str:
    """A value with its interval."""
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def difference(value: float, low: float, high: float) -> str:
    """A signed difference with its interval; alone where that is nan."""
    return f"{value:+.1f}" + f" [{low:.1f}, {high:.1f}]" * (not math.isnan(low))


def best(values: Sequence[float]) -> list[bool]:
    """Which of several values are the highest; none where there is nothing to choose from."""
    known = [value for value in values if not math.isnan(value)]
    return [len(known) > 1 and value >= max(known) - 1e-9 for value in values]


def bold(text: str, when: bool = True) -> str:
    """Text in rich's markup for bold."""
    return f"[bold]{text}[/bold]" if when else text
