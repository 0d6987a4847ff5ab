"""Fingerprints: what a cache was made from, as readable fields and, by sample, as columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_NAMED = 5
"""Samples named in a line; the rest are counted."""


def differences(sealed: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """A line for each field of `wanted` that the sealed fingerprint has otherwise.

    Nested mappings are compared field by field, named with dots. Fields that only the sealed
    fingerprint has aren't compared: the caller may not know them. Values are compared as JSON
    stores them (a tuple equals a list).
    """
    lines = []
    for name, value in wanted.items():
        if name not in sealed:
            lines.append(f"{name} is {_short(value)}, the cache doesn't say")
        elif isinstance(value, Mapping) and isinstance(sealed[name], Mapping):
            lines += [f"{name}.{line}" for line in differences(sealed[name], value)]
        elif _plain(sealed[name]) != _plain(value):
            lines.append(name + _difference(_plain(sealed[name]), _plain(value)))
    return lines


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, list) and isinstance(now, list) and len(before) > _NAMED:
        if len(before) != len(now):
            return f" had {len(before)} entries, has {len(now)}"
        place = next(
            i for i, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1]
        )
        return f"[{place}] was {_short(before[place])}, is {_short(now[place])}"
    return f" was {_short(before)}, is {_short(now)}"


def sample_differences(
    sealed: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], key: str = "sample_id"
) -> list[str]:
    """A line for each way in which samples differ, naming them.

    Both: columns by name, each [samples, …], `key` among them. Samples only in one are gone or new;
    of the others, every column that both have is compared (one over views as far as both go).
    """
    old = {name: row for row, name in enumerate(sealed[key].tolist())}
    new = {name: row for row, name in enumerate(wanted[key].tolist())}
    lines = _named([name for name in old if name not in new], "gone")
    lines += _named([name for name in new if name not in old], "new")
    common = [name for name in new if name in old]
    before, now = [old[name] for name in common], [new[name] for name in common]
    if not lines and before != now:
        lines.append("the order of the samples is another")
    for column in wanted:
        if column == key or column not in sealed:
            continue
        a, b = sealed[column][before], wanted[column][now]
        if a.ndim > 1:
            width = min(a.shape[1], b.shape[1])
            a, b = a[:, :width], b[:, :width]
        differ = (a != b).reshape(len(common), -1).any(axis=1)
        changed = [name for name, other in zip(common, differ, strict=True) if other]
        lines += [f"{column} of {line}" for line in _named(changed, "changed")]
    return lines


def _named(names: list[str], what: str) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"{', '.join(map(str, names[:_NAMED]))}{more} {what}"]


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    """Long digests by their beginning; lists as they are, up to a line."""
    text = str(_plain(value))
    most, kept = (200, 200) if isinstance(value, list | tuple) else (40, 12)
    return text if len(text) <= most else text[:kept] + "…"
