"""The demonstration: everything from nothing, and the gain from distillation."""

from __future__ import annotations

import time

from deskpro.pipeline import messages, recipes, runner, stages, tables
from deskpro.pipeline.make_benchmark import draw_missing
from deskpro.pipeline.replicates import Replicate, train
from deskpro.pipeline.results_file import remaining
from deskpro.pipeline.studies import STUDIES, require_parts
from deskpro.pipeline.summaries import summarise
from deskpro.pipeline.tables import CHANCE
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import summary, table
from deskpro.stages.base.run_folder import RunFolder


def run(options: Options, folder: RunFolder, force: bool) -> list[str]:
    """Benchmark, teacher, cache, student, the same student without targets, evaluation, report.

    Returns:
        What to say in the end: the gain, the report's path, the next command.
    """
    from deskpro.stages import report

    require_parts(options, "parts")
    started = time.monotonic()
    draw_missing(options)
    for name in stages.needed(options):
        if name in ("train-teacher", "teacher-cache"):
            runner.run_stage(name, options, folder, force=force)
    # Networks this small don't use two cores well: side by side the two students are done sooner.
    every = STUDIES["parts"].variants(options)
    variants = {name: every[name] for name in ("plain", "both")}
    rows = train(Replicate(0, options, folder), variants, force=force, jobs=2)
    found = summarise(rows, STUDIES["parts"].base_of)
    shown = tables.ablation_table(found, "plain")
    title = f"LR student without and with the teacher's cached targets: {shown.title}"
    table(*tables.terminal(shown._replace(title=title)))
    page = folder.path / "report.html"
    report.run(options, folder, page, good=6, failed=12, samples=8)
    longer = dict[str, str]()
    if left := remaining(options, recipes.FOLDER / "results.csv"):
        longer["twice the steps"] = (
            "{:+.1f} mAP without targets, measured in {} replicates (configs/results.csv)"
        ).format(*left)
    summary(
        f"demo: done in {(time.monotonic() - started) / 60:.1f} min",
        {
            **longer,
            "replicates": "one; the spread over worlds, teachers and students: make ablation",
            "images": options.data.root,
            "run": folder.path,
            "curve": folder.path / "cmc.png",
        },
    )
    of_all = found[found["stream"] == "all"].set_index("variant")
    distilled, plain, level = (of_all.loc[name].to_dict() for name in ("both", "plain", CHANCE))
    next_command = messages.command("ablation --replicates 5 --jobs 2")
    return [
        messages.gain(distilled | {"stream": "all"}, plain, level["mAP"]),
        f"report: {page}",
        f"next: {next_command}",
    ]
