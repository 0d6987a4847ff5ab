"""Fingerprints: what a cache was made from, as named values and, by sample, as columns.

Two of them are compared in words: a line for each difference.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

_NAMED = 5
"""Samples named in a line; the others are counted."""


def differences(
    sealed: Mapping[str, Any], wanted: Mapping[str, Any], unknown: Collection[str] = ()
) -> list[str]:
    """A line for each value that is another in the sealed fingerprint, or that only one has.

    Nested mappings are compared value by value, under dotted names. Values are compared as JSON
    stores them (a tuple equals a list). unknown: names that the caller may not know: they count
    only where `wanted` has them.
    """
    found = []
    for name in [*wanted, *(name for name in sealed if name not in {*wanted, *unknown})]:
        before, now = _plain(sealed.get(name)), _plain(wanted.get(name))
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += [f"{name}.{line}" for line in differences(before, now)]
        elif before != now:
            found.append(name + _values(before, now))
    return found


def sample_differences(
    sealed: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]
) -> list[str]:
    """A line for each way in which samples differ: gone, new, in another order, or in a column.

    Both: columns by name, each [samples, …], `sample_id` among them. Of the samples that both have
    every common column is compared (one over views as far as both go).
    """
    old = {name: row for row, name in enumerate(sealed["sample_id"].tolist())}
    new = {name: row for row, name in enumerate(wanted["sample_id"].tolist())}
    gone = [name for name in old if name not in new]
    added = [name for name in new if name not in old]
    found = [f"{_first(names)} {what}" for names, what in ((gone, "gone"), (added, "new")) if names]
    common = [name for name in new if name in old]
    before, now = [old[name] for name in common], [new[name] for name in common]
    if not found and before != now:
        found.append("the order of the samples has changed")
    for column in wanted:
        if column == "sample_id" or column not in sealed or not common:
            continue
        a, b = sealed[column][before], wanted[column][now]
        if a.ndim > 1:
            width = min(a.shape[1], b.shape[1])
            a, b = a[:, :width], b[:, :width]
        same_shape = a.shape == b.shape
        differ = (a != b).reshape(len(common), -1).any(1) if same_shape else [True] * len(common)
        if changed := [name for name, other in zip(common, differ, strict=True) if other]:
            found.append(f"{column} of {_first(changed)} changed")
    return found


def _first(samples: Sequence[str]) -> str:
    """The first samples, and how many follow."""
    more = f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else ""
    return ", ".join(map(str, samples[:_NAMED])) + more


def _values(before: Any, now: Any) -> str:
    if before is None:
        return f" is {short(now)}, the cache has no record of it"
    if now is None:
        return f" was {short(before)}, is not set"
    if isinstance(before, list) and isinstance(now, list) and len(before) > _NAMED:
        if len(before) != len(now):
            return f" had {len(before)} entries, has {len(now)}"
        place = next(i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
        return f"[{place}] was {short(before[place])}, is {short(now[place])}"
    return f" was {short(before)}, is {short(now)}"


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def short(value: Any) -> str:
    """Long digests by their beginning; lists whole, up to a line."""
    text = str(value)
    most, kept = (200, 200) if isinstance(value, list) else (40, 12)
    return text if len(text) <= most else text[:kept] + "…"
