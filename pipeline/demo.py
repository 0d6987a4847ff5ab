"""The demonstration: everything from nothing, and the gain from distillation."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deskpro.pipeline import config, messages, runner, stages, studies
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar, summary, table
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data import benchmark


def run(options: Options, folder: RunFolder, force: bool) -> None:
    """Benchmark, teacher, cache, student, the same student without targets, evaluation."""
    started = time.monotonic()
    if options.data_train == "benchmark" and not options.data.root.exists():
        make_benchmark(options.data.root)
    for name in stages.needed(options):
        if name in ("train-teacher", "teacher-cache"):
            runner.run_stage(name, options, folder, force=force)
    # Networks this small don't use two cores well: side by side the two students are done sooner.
    base = studies.Base(options, folder, force, seeds=1, jobs=2)
    rows = studies.ablation_rows(base, variants=("both", "plain"))
    title = "LR student without and with the teacher's cached targets (%, Market rule)"
    table(title, *messages.demo_table(studies.summarise(rows)))
    summary(
        f"demo: done in {(time.monotonic() - started) / 60:.1f} min",
        {
            "seed": f"{options.train_student.seed} alone; the spread over seeds: make ablation",
            "images": options.data.root,
            "run": folder.path,
            "curve": folder.path / "cmc.png",
        },
    )


def make_benchmark(root: Path, overrides: Iterable[str] = (), workers: int | None = None) -> None:
    """Draw the benchmark into `root` with some of its options overridden (FIELD=VALUE)."""
    known = {field.name for field in dataclasses.fields(benchmark.BenchmarkOptions)}
    values: dict[str, Any] = {}
    for override in overrides:
        name, text = config.assignment("--set", override, "seed=1")
        if name not in known:
            raise InputError(f"--set {override}: must be one of {', '.join(sorted(known))}")
        value = config.parse(text)
        values[name] = tuple(value) if isinstance(value, list) else value
    try:
        options = benchmark.BenchmarkOptions(**values)
    except (ValueError, TypeError) as error:
        raise InputError(f"make-benchmark: {error}") from None
    started = time.monotonic()
    try:
        with bar("make-benchmark", 0, "images") as progress:
            counts = benchmark.make_benchmark(root, options, workers, progress.reach)
    except FileExistsError:
        raise InputError(f"{root}: exists already; give another with --out, or remove it") from None
    facts = {name.replace("_", " "): count for name, count in counts.items()}
    seconds = time.monotonic() - started
    summary(f"make-benchmark: done in {seconds:.0f} s", {**facts, "folder": root})
