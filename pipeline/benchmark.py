"""Make the benchmark, for a person who waits."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deskpro.pipeline.config import parse
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.progress import bar, summary
from deskpro.stages.data.benchmark import BenchmarkOptions, make_benchmark


def make(root: Path, overrides: Iterable[str] = (), workers: int | None = None) -> None:
    """Draw the benchmark into `root` with some of its options overridden (FIELD=VALUE)."""
    options = _options(overrides)
    started = time.monotonic()
    try:
        with bar("make-benchmark", 0, "pictures") as progress:
            counts = make_benchmark(root, options, workers, progress.reach)
    except FileExistsError:
        raise InputError(f"{root}: exists already; give another with --out, or remove it") from None
    seconds = time.monotonic() - started
    facts: dict[str, object] = {name.replace("_", " "): n for name, n in counts.items()}
    summary(f"make-benchmark: done in {seconds:.0f} s", facts | {"folder": root})


def _options(overrides: Iterable[str]) -> BenchmarkOptions:
    known = {field.name: field for field in dataclasses.fields(BenchmarkOptions)}
    values: dict[str, Any] = {}
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator or name not in known:
            raise InputError(
                f"--set {override!r}: must be FIELD=VALUE with one of {', '.join(known)}"
            )
        value = parse(text)
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        return BenchmarkOptions(**values)
    except (ValueError, TypeError) as error:
        raise InputError(f"make-benchmark: {error}") from None
