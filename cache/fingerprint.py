"""Fingerprints: what a cache was made from, as readable fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
            lines.append(f"{name} was {_short(sealed[name])}, is {_short(value)}")
    return lines


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = str(_plain(value))
    return text if len(text) <= 40 else text[:12] + "…"
