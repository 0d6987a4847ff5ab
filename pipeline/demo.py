"""The demonstration: everything from nothing, and the gain from distillation."""

from __future__ import annotations

import time

from deskpro.pipeline import benchmark, messages, runner, stages, studies
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import summary, table
from deskpro.stages.base.run_folder import RunFolder


def run(options: Options, folder: RunFolder, force: bool) -> None:
    """Benchmark, teacher, cache, student, the same student without targets, evaluation."""
    started = time.monotonic()
    if options.data_train == "benchmark" and not options.data.root.exists():
        benchmark.make(options.data.root)
    for name in stages.needed(options):
        if name in ("train-teacher", "teacher-cache"):
            runner.run_stage(name, options, folder, force=force)
    # Networks this small don't use two cores well: side by side the two students are done sooner.
    rows = studies.ablation_rows(
        options, folder, force, variants=("both", "plain"), seeds=1, jobs=2
    )
    table(*messages.demo_table(studies.summarise(rows)))
    summary(
        f"demo: done in {(time.monotonic() - started) / 60:.1f} min",
        {
            "seed": f"{options.train_student.seed} alone; the spread over seeds: make ablation",
            "images": options.data.root,
            "run": folder.path,
            "curve": folder.path / "cmc.png",
        },
    )
