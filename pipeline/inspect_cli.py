"""The commands beside the stages: look at data, caches and runs; import, embed, draw, compare."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click

_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Repeatable.")
_COUNT = click.IntRange(0)


def _fail_with(lines: Iterable[object]) -> None:
    """Print what was found; exit code 1 where that is anything."""
    found = [str(line) for line in lines]
    for line in found:
        click.echo(line)
    if found:
        sys.exit(1)


@click.group()
def cache() -> None:
    """Look inside a target cache: of a run folder, or the store itself."""


@cache.command()
@click.argument("path", type=_PATH)
def info(path: Path) -> None:
    """What it holds: shape, coverage, size, and how sure the teacher is."""
    from deskpro.stages import cache_tools
    from deskpro.stages.base.progress import summary, table

    facts, tables = cache_tools.info(path)
    for title, columns, rows in tables:
        table(title, columns, rows)
    summary(f"cache info: {path}", facts)


@cache.command()
@click.argument("path", type=_PATH)
def verify(path: Path) -> None:
    """Check every byte against its checksum; exit code 1 if anything is damaged."""
    from deskpro.stages import cache_tools
    from deskpro.stages.base.progress import log

    _fail_with(cache_tools.verify(path))
    log(f"cache verify: {path} is complete and undamaged")


@cache.command()
@click.argument("run", type=_FOLDER)
@click.option("--samples", default=64, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--seed", default=0, show_default=True, type=_COUNT, help="Which.")
@click.option("--deep", is_flag=True, help="Read every file again, known or not.")
@_SET
def audit(run: Path, samples: int, seed: int, deep: bool, overrides: tuple[str, ...]) -> None:
    """Compute targets of random views again; exit code 1 if the cache has others.

    RUN is a run folder; its cache, teacher and images must be there.
    """
    from deskpro.pipeline import config
    from deskpro.stages import cache_tools
    from deskpro.stages.base.errors import InputError
    from deskpro.stages.base.progress import summary
    from deskpro.stages.base.run_folder import RunFolder, read_json

    folder = RunFolder.open(run)
    record = read_json(RunFolder(folder.upstream).manifest("teacher-cache"))
    if record is None or not folder.targets.exists():
        raise InputError(f"{run}: no target cache with a manifest here", command="teacher-cache")
    options = config.restore(record["config"], overrides)
    report = cache_tools.audit(options, folder, samples=samples, seed=seed, deep=deep)
    summary(f"cache audit: {run}", report.facts)
    _fail_with(report.differences)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=_PATH)
@click.option(
    "--out",
    type=_FOLDER,
    default=Path("runs/compare"),
    show_default=True,
    help="The folder for compare.csv and compare.png.",
)
@click.option("--anyway", is_flag=True, help="Compare what runs of other protocols or data share.")
def compare(runs: tuple[Path, ...], out: Path, anyway: bool) -> None:
    """Compare runs with the first: one table and figure, with a paired test over queries."""
    from deskpro.stages import compare as stage
    from deskpro.stages.base.progress import summary

    if len(runs) < 2:
        raise click.UsageError(f"{len(runs)} run given, two are needed: deskpro compare RUN RUN …")
    summary("compare: done", stage.run(runs, out, anyway=anyway))


@click.command()
@click.argument("run", type=_FOLDER)
@click.option("--out", type=_PATH, help="File.  [default: RUN/report.html]")
@click.option("--good", default=6, show_default=True, type=_COUNT, help="Good queries to show.")
@click.option("--failed", default=12, show_default=True, type=_COUNT, help="Failed queries.")
@click.option("--samples", default=8, show_default=True, type=_COUNT, help="Training samples.")
@_SET
def report(
    run: Path,
    out: Path | None,
    good: int,
    failed: int,
    samples: int,
    overrides: tuple[str, ...],
) -> None:
    """Write the report of a run folder: one HTML file with everything in it.

    Figures with their intervals, curves, ranked lists of good and failed queries, the student's
    attention beside its target, and the provenance of everything. It needs no network, and RUN
    must have been evaluated.
    """
    from deskpro.pipeline import config
    from deskpro.stages import report as stage
    from deskpro.stages.base.errors import InputError
    from deskpro.stages.base.progress import summary
    from deskpro.stages.base.run_folder import RunFolder, read_json

    folder = RunFolder.open(run)
    record = read_json(folder.manifest("eval"))
    if record is None or not folder.metrics.exists():
        raise InputError(f"{run}: no evaluation with a manifest here", command=f"eval --run {run}")
    facts = stage.run(
        config.restore(record["config"], overrides),
        folder,
        out or run / "report.html",
        good=good,
        failed=failed,
        samples=samples,
    )
    summary(f"report: {run}", facts)


@click.command("check-data")
@click.option("--config", type=_PATH, help="The recipe, YAML.  [default: RUN/config.yaml]")
@click.option("--run", type=_FOLDER, help="The run folder.  [default: runs/<config name>]")
@_SET
def check_data(config: Path | None, run: Path | None, overrides: tuple[str, ...]) -> None:
    """Find the problems of a dataset and list them all; exit 2 where there are any."""
    from deskpro.pipeline.cli import open_run
    from deskpro.stages import check_data as stage
    from deskpro.stages.base.progress import summary

    options, folder = open_run(config, run, None, overrides)
    problems, facts = stage.run(options, folder)
    for problem in problems:
        click.echo(str(problem))
    summary(f"check-data: {len(problems)} problems in {options.data.root}", facts)
    if problems:
        sys.exit(2)


@click.command("import-checkpoint")
@click.argument("checkpoint", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="Folder for weights.")
@click.option("--data", type=_PATH, help="The dataset it was trained on.")
@click.option("--dataset", default="celeb", show_default=True, help="How its names are read.")
@click.option("--force", is_flag=True, help="Replace weights that exist.")
def import_checkpoint(
    checkpoint: Path, out: Path, data: Path | None, dataset: str, force: bool
) -> None:
    """Turn a published checkpoint into teacher.safetensors and student.safetensors.

    Nothing in the file is executed. With --data the class order is written too, and the number of
    identities is checked.
    """
    from deskpro.pipeline.config import require_dataset
    from deskpro.stages import import_checkpoint as stage
    from deskpro.stages.base.progress import summary

    require_dataset(dataset)
    facts = stage.run(checkpoint, out, data, dataset, force)
    summary(f"import-checkpoint: {checkpoint}", facts)


@click.command()
@click.option("--checkpoint", required=True, type=_PATH, help="Weights.")
@click.option("--data", "root", required=True, type=_PATH, help="The dataset.")
@click.option("--split", required=True, type=click.Choice(["train", "query", "gallery"]))
@click.option("--out", required=True, type=_PATH, help="An .npz file.")
@click.option("--config", type=_PATH, help="A recipe for other options.")
@_SET
def embed(
    checkpoint: Path,
    root: Path,
    split: str,
    out: Path,
    config: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Write the features of a split: path, raw [n, heads, D] and feature [n, heads·D]."""
    from deskpro.pipeline.config import load, override
    from deskpro.stages import embed as stage
    from deskpro.stages.base.progress import summary

    options = override(load(config, overrides), {"data.root": root})
    facts = stage.run(options, checkpoint, split, out)
    summary(f"embed: {checkpoint}", facts)


@click.command("make-benchmark")
@click.option(
    "--out",
    type=_PATH,
    default=Path("data/benchmark"),
    show_default=True,
    help="The folder to make; it must not exist.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one per core]")
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="As seed=1; repeatable."
)
def make_benchmark(out: Path, workers: int | None, overrides: tuple[str, ...]) -> None:
    """Draw the benchmark: people who change clothes, in the prepared layout."""
    from deskpro.pipeline.benchmark import make

    make(out, overrides, workers)


COMMANDS = (
    cache,
    check_data,
    compare,
    embed,
    import_checkpoint,
    make_benchmark,
    report,
)
