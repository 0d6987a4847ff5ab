"""The command `ablation`: replicates that the results lack are trained, then table and page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from deskpro.cache.files import write_text
from deskpro.pipeline import messages, references, runner, students, tables
from deskpro.pipeline.make_benchmark import draw_missing
from deskpro.pipeline.replicates import replicates, require_worlds, train_all
from deskpro.pipeline.results_file import ResultsFile
from deskpro.pipeline.studies import LONGER, PLAIN, STUDIES, Variants, require_parts, same_cells
from deskpro.pipeline.summaries import draw_curves, paired, summarise
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log, table
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.metrics.intervals import t_interval
from deskpro.stages.reporting import cells


class StudiedRun(NamedTuple):
    """The run whose variants are studied, and how often."""

    options: Options
    folder: RunFolder
    force: bool = False
    replicates: int = 5
    jobs: int = 1
    """Replicates at a time."""
    results: Path | None = None
    """The file of results; None: `results.csv` in the run folder."""


def run_study(run: StudiedRun, study: str) -> Path:
    """Run a study: train the replicates that the file of results lacks, and write the table.

    Returns:
        The page with the table, in the run folder; a study with a curve has its chart beside it.
    """
    options, folder = run.options, run.folder
    require_parts(options, study)
    draw_missing(options)
    if options.prepare is not None:  # images tell what was measured
        runner.run_stage("prepare", options, folder)
    chosen = STUDIES[study]
    variants = chosen.variants(options)
    given = students.given(options, folder)
    file = ResultsFile(run.results or folder.path / "results.csv", study, options, given)
    _measure(run, variants, file)
    rows = _with_runs(file.rows(), run, variants)
    found = summarise(rows, chosen.base_of, same_cells(options, variants, chosen.base_of))
    level = " at the same level" * bool(chosen.axis)
    shown = tables.ablation_table(found, chosen.base + level)
    table(*tables.terminal(shown))
    other = study != "parts"
    add = f" --study {study}" * other + f" --replicates {run.replicates} --jobs {run.jobs}"
    facts = {
        "Replicates": str(run.replicates),
        "recipe": file.recipe,
        "code": file.code,
        "results": str(file.path),
        "made by": f"`{messages.command(f'ablation{add}')}`",
    }
    path = folder.path / ("ablation" + f"-{study}" * other + ".md")
    found_beside = [] if other else [*findings(rows)]
    write_text(path, tables.ablation_page(shown, facts, found_beside))
    if curve := chosen.curve(options):
        draw_curves(rows, curve, path.with_suffix(""))
    return path


def _measure(run: StudiedRun, variants: Variants, file: ResultsFile) -> None:
    """Train what the file lacks; each replicate is added to it as soon as it is done."""
    every = replicates(run.options, run.folder, run.replicates)
    wanted = [*variants, *references.always(run.options, run.folder)]
    complete = file.complete(wanted)  # --force, too, refuses a file of others before any work
    done = set[int]() if run.force else complete
    for each in every:
        if each.number in done:
            log(f"{each.name}: its results are in {file.path} (--force trains it again)")
    missing = [each for each in every if each.number not in done]
    require_worlds(missing)
    for each, rows in train_all(missing, variants, force=run.force, jobs=run.jobs):
        file.add(each.number, rows)
        log(f"{each.name}: its results are added to {file.path}")


def _with_runs(rows: pd.DataFrame, run: StudiedRun, variants: Variants) -> pd.DataFrame:
    """The rows of this command's replicates, with the folder of each student of the run itself."""
    rows = rows[rows["replicate"] < run.replicates].reset_index(drop=True)
    homes = {
        variant: str(students.home(run.options, run.folder, variant, changes).path)
        for variant, changes in variants.items()
    }
    return rows.assign(run=rows["variant"].map(homes).fillna(""))


def findings(rows: pd.DataFrame) -> Iterator[str]:
    """What the table of `parts` doesn't show: differences between streams, references and lengths,
    paired by replicate."""
    parts = dict([*rows.groupby(["variant", "stream"])])
    count = rows["replicate"].nunique()

    def mean(one: tuple[str, str], other: tuple[str, str], measure: str = "mAP") -> str:
        changes = 100 * paired(parts[one], parts[other], measure)
        ends = t_interval(changes) if len(changes) else [math.nan] * 2
        return cells.difference(float(changes.mean()), *ends)

    both = {stream: ("both", stream) for stream in ("face", "body", "all")}
    if both["face"] in parts:
        gain = mean(both["all"], both["face"], "mAP_with_face")
        yield f"`both`, all − face, on queries with a face: {gain} points of mAP."
    yield f"`both`, all − body, on all queries: {mean(both['all'], both['body'])} points of mAP."
    above = [
        f"{name} in {int((paired(parts[both['body']], parts[name, 'body']) > 0).sum())} of {count}"
        for name in (tables.CLOTHES, tables.CHANCE)
        if (name, "body") in parts
    ]
    yield f"`both`, body, is above {', above '.join(above)} replicates."
    gains = (
        f"{stream} {mean((LONGER, stream), (PLAIN, stream))}"
        for stream in both
        if (LONGER, stream) in parts
    )
    yield f"Twice the steps add to `plain`: {', '.join(gains)} points of mAP."
