"""Fingerprints: what a cache was made from, as named values and, by sample, as columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

_NAMED = 5
"""Samples named in a line; the others are counted."""


class FieldDifference(NamedTuple):
    """A value of the fingerprint that has changed.

    name: dotted where values are nested. before, now: None where the sealed, or the wanted,
    fingerprint has none.
    """

    name: str
    before: Any
    now: Any


class SampleDifference(NamedTuple):
    """Samples that are gone or new, whose order or whose value in a column has changed."""

    kind: Literal["gone", "new", "order", "changed"]
    samples: tuple[str, ...] = ()
    column: str = ""


Difference = FieldDifference | SampleDifference


def differences(
    sealed: Mapping[str, Any], wanted: Mapping[str, Any], unknown: Collection[str] = ()
) -> list[FieldDifference]:
    """Each value that is another in the sealed fingerprint, or that only one of both has.

    Nested mappings are compared value by value. Values are compared as JSON stores them (a tuple
    equals a list). unknown: names that the caller may not know: they count only where `wanted` has
    them.
    """
    found = []
    for name in [*wanted, *(name for name in sealed if name not in {*wanted, *unknown})]:
        before, value = sealed.get(name), wanted.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            found += [
                inner._replace(name=f"{name}.{inner.name}") for inner in differences(before, value)
            ]
        elif _plain(before) != _plain(value):
            found.append(FieldDifference(name, _plain(before), _plain(value)))
    return found


def sample_differences(
    sealed: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], key: str = "sample_id"
) -> list[SampleDifference]:
    """Each way in which samples differ.

    Both: columns by name, each [samples, …], `key` among them. Of the samples that both have every
    common column is compared (one over views as far as both go).
    """
    old = {name: row for row, name in enumerate(sealed[key].tolist())}
    new = {name: row for row, name in enumerate(wanted[key].tolist())}
    gone = tuple(name for name in old if name not in new)
    added = tuple(name for name in new if name not in old)
    found = [SampleDifference("gone", gone)] if gone else []
    found += [SampleDifference("new", added)] if added else []
    common = [name for name in new if name in old]
    before, now = [old[name] for name in common], [new[name] for name in common]
    if not found and before != now:
        found.append(SampleDifference("order"))
    for column in wanted:
        if column == key or column not in sealed or not common:
            continue
        a, b = sealed[column][before], wanted[column][now]
        if a.ndim > 1:
            width = min(a.shape[1], b.shape[1])
            a, b = a[:, :width], b[:, :width]
        same_shape = a.shape == b.shape
        differ = (a != b).reshape(len(common), -1).any(1) if same_shape else [True] * len(common)
        changed = tuple(name for name, other in zip(common, differ, strict=True) if other)
        if changed:
            found.append(SampleDifference("changed", changed, column))
    return found


def describe(found: Iterable[Difference]) -> list[str]:
    """A line for each difference."""
    return [
        _samples(one) if isinstance(one, SampleDifference) else one.name + _values(*one[1:])
        for one in found
    ]


def _samples(one: SampleDifference) -> str:
    if one.kind == "order":
        return "the order of the samples has changed"
    more = f" and {len(one.samples) - _NAMED} more" if len(one.samples) > _NAMED else ""
    names = ", ".join(map(str, one.samples[:_NAMED])) + more
    return f"{one.column} of {names} changed" if one.kind == "changed" else f"{names} {one.kind}"


def _values(before: Any, now: Any) -> str:
    if before is None:
        return f" is {_short(now)}, the cache has no record of it"
    if now is None:
        return f" was {_short(before)}, is not set"
    if isinstance(before, list) and isinstance(now, list) and len(before) > _NAMED:
        if len(before) != len(now):
            return f" had {len(before)} entries, has {len(now)}"
        place = next(i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
        return f"[{place}] was {_short(before[place])}, is {_short(now[place])}"
    return f" was {_short(before)}, is {_short(now)}"


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    """Long digests by their beginning; lists whole, up to a line."""
    text = str(value)
    most, kept = (200, 200) if isinstance(value, list) else (40, 12)
    return text if len(text) <= most else text[:kept] + "…"
