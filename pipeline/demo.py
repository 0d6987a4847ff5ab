"""The demonstration: everything from nothing, and what the teacher's knowledge was worth."""

from __future__ import annotations

import time

from deskpro.pipeline import ablation, benchmark
from deskpro.pipeline import runner as running
from deskpro.pipeline import stages as plan
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import summary, table
from deskpro.stages.base.run_folder import RunFolder


def run(options: Options, folder: RunFolder, *, force: bool = False) -> None:
    """Benchmark, teacher, cache, student, the same student without the cache, evaluation."""
    started = time.monotonic()
    if options.data_train == "benchmark" and not options.data.root.exists():
        benchmark.make(options.data.root)
    for name in plan.needed(options):
        if name in ("train-teacher", "teacher-cache"):
            running.run_stage(name, options, folder, force=force)
    # The run's own student, and the same without the teacher's targets. Networks this small don't
    # use two cores well: side by side the two are done sooner.
    rows = ablation.run(options, folder, variants=("both", "plain"), seeds=1, jobs=2, force=force)
    summarised = ablation.summarise(rows).to_dict("records")
    result = {(row["variant"], row["stream"]): row for row in summarised}
    lines = []
    for stream in ("face", "body", "all"):
        plain, both = result["plain", stream], result["both", stream]
        gains = [f"{both[m] - plain[m]:+.1f}" for m in ("mAP", "rank1")]
        numbers = [f"{row[m]:.1f}" for m in ("mAP", "rank1") for row in (plain, both)]
        lines.append((stream, *numbers[:2], gains[0], *numbers[2:], gains[1]))
    teacher = result["teacher", "face"]
    lines.append(
        ("teacher, HR face", "", f"{teacher['mAP']:.1f}", "", "", f"{teacher['rank1']:.1f}", "")
    )
    table(
        "LR student without and with the teacher's cached targets (%, Market rule)",
        ("stream", "mAP plain", "mAP distilled", "", "rank-1 plain", "rank-1 distilled", ""),
        lines,
    )
    summary(
        f"demo: done in {(time.monotonic() - started) / 60:.1f} min",
        {
            "seed": f"{options.train_student.seed} alone; the spread over seeds: make ablation",
            "images": options.data.root,
            "run": folder.path,
            "curve": folder.path / "cmc.png",
        },
    )
