"""The commands beside the stages: inspect data, caches and runs; import, embed, draw, compare."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from deskpro.pipeline import config, messages
from deskpro.pipeline.arguments import CONFIG, DATASET, DEEP, FOLDER, PATH, RUN, SET, Recipe
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log, summary, table
from deskpro.stages.base.run_folder import RunFolder, read_manifest

_COUNT = click.IntRange(0)


def _fail_with(lines: Iterable[object]) -> None:
    """Print what was found; exit code 1 where that is anything."""
    found = [str(line) for line in lines]
    if found:
        click.echo("\n".join(found))
        sys.exit(1)


def _advise_on(path: Path) -> None:
    """Commands that errors advise are for this run folder, or for that of this store."""
    run = path.parent if path.name == "targets.zarr" else path
    messages.OPTIONS[:] = ["--run", str(run)]


def _options(manifest: Path, overrides: tuple[str, ...], output: Path, command: str) -> Options:
    """The options that a finished stage records in its manifest; InputError without one."""
    record = read_manifest(manifest)
    if record is None or not output.exists():
        raise InputError(f"{output}: missing, or has no manifest", command=command)
    return config.load(record["config"], overrides)


@click.group()
def cache() -> None:
    """Inspect a target cache: of a run folder, or the store itself."""


@cache.command()
@click.argument("path", type=PATH)
def info(path: Path) -> None:
    """What it holds: shape, coverage, size, and how sure the teacher is."""
    from deskpro.stages import cache_tools

    _advise_on(path)
    facts, tables = cache_tools.info(path)
    for title, columns, rows in tables:
        table(title, columns, rows)
    summary(f"cache info: {path}", facts)


@cache.command()
@click.argument("path", type=PATH)
def verify(path: Path) -> None:
    """Check every byte against its checksum; exit code 1 if anything is damaged."""
    from deskpro.stages import cache_tools

    _advise_on(path)
    _fail_with(cache_tools.verify(path))
    log(f"cache verify: {path} is complete and undamaged")


@cache.command()
@click.argument("run", type=FOLDER)
@click.option("--samples", default=64, type=click.IntRange(1), help="How many.")
@click.option("--seed", default=0, type=_COUNT, help="Which.")
@DEEP
@SET
def audit(run: Path, overrides: tuple[str, ...], deep: bool, **sampling: int) -> None:
    """Compute targets of random views again; exit code 1 if the cache has others.

    RUN is a run folder; its cache, teacher and images must be there.
    """
    from deskpro.stages import cache_tools

    _advise_on(run)
    folder = RunFolder.open(run)
    manifest = RunFolder(folder.upstream).manifest("teacher-cache")
    options = _options(manifest, overrides, folder.targets, "teacher-cache")
    report = cache_tools.audit(options, folder, deep=deep, **sampling)
    summary(f"cache audit: {run}", report.facts)
    _fail_with(report.differences)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option(
    "--out",
    type=FOLDER,
    default=Path("runs/compare"),
    help="The folder for compare.csv and compare.png.",
)
@click.option("--anyway", is_flag=True, help="Compare what runs of other protocols or data share.")
def compare(runs: tuple[Path, ...], out: Path, anyway: bool) -> None:
    """Compare runs with the first: one table and figure, paired by query, tested by identity."""
    from deskpro.stages import compare as stage

    if len(runs) < 2:
        raise click.UsageError(f"{len(runs)} run given, two are needed: deskpro compare RUN RUN …")
    summary("compare: done", stage.run(runs, out, anyway=anyway))


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=PATH, help="File.  [default: RUN/report.html]")
@click.option("--good", default=6, type=_COUNT, help="Good queries to show.")
@click.option("--failed", default=12, type=_COUNT, help="Failed queries.")
@click.option("--samples", default=8, type=_COUNT, help="Training samples.")
@click.option("--anyway", is_flag=True, help="Report the evaluation of an earlier student.")
@SET
def report(
    run: Path, out: Path | None, overrides: tuple[str, ...], anyway: bool, **shown: int
) -> None:
    """Write the report of a run folder: one HTML file with everything in it.

    Figures with their intervals, curves, ranked lists of good and failed queries, the student's
    attention beside its target, and the provenance of everything. It needs no network, and RUN
    must have been evaluated.
    """
    from deskpro.stages import report as stage

    folder = RunFolder.open(run)
    command = shlex.join(["eval", "--run", str(run)])
    options = _options(folder.manifest("eval"), overrides, folder.metrics, command)
    facts = stage.run(options, folder, out or run / "report.html", anyway=anyway, **shown)
    summary(f"report: {run}", facts)


@click.command("check-data")
@CONFIG
@RUN
@SET
def check_data(config: Path | None, run: Path | None, overrides: tuple[str, ...]) -> None:
    """Find the problems of a dataset and list them all; exit 2 where there are any."""
    from deskpro.stages import check_data as stage

    options, folder = Recipe(config, run, overrides=overrides).open()
    problems, facts = stage.run(options, folder)
    for problem in problems:
        click.echo(str(problem))
    summary(f"check-data: {len(problems)} problems in {options.data.root}", facts)
    if problems:
        sys.exit(2)


@click.command("import-checkpoint")
@click.argument("checkpoint", type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder for weights.")
@click.option("--data", type=PATH, help="The dataset it was trained on.")
@DATASET
@click.option("--force", is_flag=True, help="Replace weights that exist.")
def import_checkpoint(
    checkpoint: Path, out: Path, data: Path | None, dataset: str, force: bool
) -> None:
    """Turn a published checkpoint into teacher.safetensors and student.safetensors.

    Nothing in the file is executed. With --data the class order is written too, and the number of
    identities is checked.
    """
    from deskpro.stages import import_checkpoint as stage

    config.require_dataset(dataset)
    facts = stage.run(checkpoint, out, data, dataset, force)
    summary(f"import-checkpoint: {checkpoint}", facts)


@click.command()
@click.option("--checkpoint", required=True, type=PATH, help="Weights.")
@click.option("--data", "root", required=True, type=PATH, help="The dataset.")
@click.option("--split", required=True, type=click.Choice(["train", "query", "gallery"]))
@click.option("--out", required=True, type=PATH, help="An .npz file.")
@click.option("--config", "recipe", type=PATH, help="A recipe for other options.")
@SET
def embed(
    recipe: Path | None,
    overrides: tuple[str, ...],
    root: Path,
    checkpoint: Path,
    split: str,
    out: Path,
) -> None:
    """Write the features of a split: path, raw [n, heads, D] and feature [n, heads·D]."""
    from deskpro.stages import embed as stage

    options = Recipe(recipe, overrides=overrides).options()
    options = config.override(options, {"data.root": root})
    summary(f"embed: {checkpoint}", stage.run(options, checkpoint, split, out))


@click.command("make-benchmark")
@click.option(
    "--out",
    type=PATH,
    default=Path("data/benchmark"),
    help="The folder to make; it must not exist.",
)
@click.option("--workers", type=click.IntRange(1, 1024), help="Processes.  [default: one per core]")
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="As seed=1; repeatable."
)
def make_benchmark(out: Path, workers: int | None, overrides: tuple[str, ...]) -> None:
    """Draw the benchmark: people who change clothes, in the prepared layout."""
    from deskpro.pipeline.demo import make_benchmark

    make_benchmark(out, overrides, workers)


COMMANDS = (cache, check_data, compare, embed, import_checkpoint, make_benchmark, report)
