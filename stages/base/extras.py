"""Libraries that only some uses need, and what they raise for a broken file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from deskpro.stages.base.errors import InputError


def optional(module: str, use: str, extra: str = "prepare") -> Any:
    """A library of an extra. Raises InputError where it cannot be imported.

    use: what needs it, such as an option; extra: of the package, which installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"{use} needs the package {module}: {error}. Type: pip install '.[{extra}]'"
        ) from None


@contextmanager
def loading(option: str, value: object, what: str) -> Iterator[None]:
    """Turn any error of a library that loads `value` into an InputError; what: it must be."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 — loaders raise anything for a broken file
        raise InputError(f"{option} {value}: not {what}: {one_line(error)}".lstrip()) from None


def one_line(error: Exception | str) -> str:
    """An error of a library, or its text, on one line: the first 300 characters."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 300 else line[:300] + "…"
