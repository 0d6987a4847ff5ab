"""Draw the synthetic benchmark, when asked or where it is missing."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deskpro.pipeline import config
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar, start, summary
from deskpro.stages.data import benchmark


def draw_missing(options: Options) -> None:
    """Draw the benchmark of a recipe that is about it, where its folder does not exist."""
    if options.train_set == "benchmark" and not options.data.root.exists():
        start("make-benchmark", output=options.data.root)
        make_benchmark(options.data.root)


def make_benchmark(root: Path, overrides: Iterable[str] = (), workers: int | None = None) -> None:
    """Draw the benchmark into `root` with some of its options overridden (FIELD=VALUE)."""
    known = benchmark.BenchmarkOptions.model_fields
    values: dict[str, Any] = {}
    for override in overrides:
        name, text = config.assignment("--set", override, "seed=1")
        if name not in known:
            raise InputError(f"--set {override}: must be one of {', '.join(sorted(known))}")
        values[name] = config.parse(text)
    try:
        options = benchmark.BenchmarkOptions(**values)
    except ValidationError as error:
        raise config.invalid("make-benchmark", error, "Give another with --set") from None
    started = time.monotonic()
    try:
        with bar("make-benchmark", 0, "images") as progress:
            counts = benchmark.make_benchmark(root, options, workers, progress.reach)
    except FileExistsError:
        raise InputError(f"{root}: exists already; give another with --out, or remove it") from None
    facts = {name.replace("_", " "): count for name, count in counts.items()}
    seconds = time.monotonic() - started
    summary(f"make-benchmark: done in {seconds:.0f} s", {**facts, "folder": root})
