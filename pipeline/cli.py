"""The command line: `deskpro COMMAND`. Imports nothing heavy until a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deskpro.pipeline import failures
from deskpro.pipeline.cache_commands import cache
from deskpro.pipeline.compare_command import compare
from deskpro.pipeline.prepare_command import prepare
from deskpro.pipeline.report_command import report

if TYPE_CHECKING:
    from deskpro.stages.base.options import Options
    from deskpro.stages.base.run_folder import RunFolder

_CONFIG = click.option(
    "--config", required=True, type=click.Path(path_type=Path), help="The recipe, a YAML file."
)
_RUN = click.option(
    "--run",
    "run_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The run folder.  [default: runs/<config name>]",
)
_SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override an option; repeatable."
)
_FORCE = click.option("--force", is_flag=True, help="Run although the output exists.")


def _recipe(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every stage takes."""
    return _CONFIG(_RUN(_SET(_FORCE(command))))


def _open(config: Path, run_dir: Path | None, overrides: tuple[str, ...]) -> tuple[Options, Any]:
    from deskpro.pipeline.config import load
    from deskpro.stages.base.run_folder import RunFolder

    options = load(config, overrides)
    folder: RunFolder = RunFolder.of(config, options, run_dir)
    return options, folder


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="deskpro")
def deskpro() -> None:
    """Two-stage offline distillation for cloth-changing person re-identification.

    A teacher that sees restored HR faces and parsing masks runs once; its logits and spatial
    attention are cached in zarr; any number of LR students train from the cache alone.
    """


def _stage(name: str, text: str) -> None:
    @deskpro.command(name, help=text)
    @_recipe
    @click.option(
        "--deep", is_flag=True, help="Read every image again, whatever its time of change."
    )
    def command(
        config: Path, run_dir: Path | None, overrides: tuple[str, ...], force: bool, deep: bool
    ) -> None:
        from deskpro.pipeline import runner as running

        options, folder = _open(config, run_dir, overrides)
        running.run_stage(name, options, folder, force=force, deep=deep)


_stage("train-teacher", "Train the teacher on HR faces, where no teacher weights exist.")
_stage("teacher-cache", "Stage one: run the teacher once; cache its logits and attention.")
_stage("train-student", "Stage two: train the LR student from the cache alone.")


@deskpro.command("eval")
@click.option("--config", type=click.Path(path_type=Path), help="The recipe, a YAML file.")
@_RUN
@_SET
@_FORCE
@click.option("--deep", is_flag=True, help="Read every image again, whatever its time of change.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Evaluate this weights file alone, with no other stage; needs --data.",
)
@click.option("--data", "root", type=click.Path(path_type=Path), help="The set, with --checkpoint.")
@click.option("--dataset", default="celeb", show_default=True, help="How its names are read.")
def eval_(
    config: Path | None,
    run_dir: Path | None,
    overrides: tuple[str, ...],
    force: bool,
    deep: bool,
    checkpoint: Path | None,
    root: Path | None,
    dataset: str,
) -> None:
    """Evaluate the student by every protocol of the dataset, for face, body and all."""
    from deskpro.pipeline import runner as running
    from deskpro.pipeline.config import load, override, require_dataset
    from deskpro.stages.base.run_folder import RunFolder

    if checkpoint is None:
        if config is None or root is not None:
            raise click.UsageError("give a recipe with --config, or --checkpoint and --data")
        options, folder = _open(config, run_dir, overrides)
        running.run_stage("eval", options, folder, force=force, deep=deep)
        return
    if root is None:
        raise click.UsageError("--checkpoint needs --data, the folder of the set")
    require_dataset(dataset)
    given = {
        "data.root": root, "data.test_root": None, "data_train": dataset, "data_test": None
    }  # fmt: skip
    options = override(load(config, overrides), given)
    home = RunFolder(run_dir or Path("runs") / f"eval-{checkpoint.stem}")
    running.evaluate_alone(options, checkpoint, home, force=force, deep=deep)


deskpro.add_command(cache)
deskpro.add_command(compare)
deskpro.add_command(prepare)
deskpro.add_command(report)


@deskpro.command("all")
@_recipe
def all_(config: Path, run_dir: Path | None, overrides: tuple[str, ...], force: bool) -> None:
    """Every stage that isn't fresh, in order; with --force every stage."""
    from deskpro.pipeline import runner as running
    from deskpro.pipeline import stages as plan

    options, folder = _open(config, run_dir, overrides)
    for name in plan.needed(options):
        running.run_stage(name, options, folder, force=force)


@deskpro.command()
@_recipe
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="How many.")
@click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(1), help="Students at a time."
)
@click.option(
    "--study",
    default="parts",
    show_default=True,
    type=click.Choice(["parts", "views", "storage"]),
    help="parts: plain, +KD, +attention, both. views: how many, matched or not, live teacher. "
    "storage: logits as float16 or int8.",
)
def ablation(
    config: Path,
    run_dir: Path | None,
    overrides: tuple[str, ...],
    force: bool,
    seeds: int,
    jobs: int,
    study: str,
) -> None:
    """What parts of the recipe are worth over several seeds, all students from one cache."""
    from deskpro.pipeline import ablation as studies

    options, folder = _open(config, run_dir, overrides)
    rows = studies.run(options, folder, study=study, seeds=seeds, jobs=jobs, force=force)
    sets = "".join(f" --set {override}" for override in overrides)
    command = f"deskpro ablation --config {config}{sets}"
    command += f" --study {study}" * (study != "parts") + f" --seeds {seeds} --jobs {jobs}"
    where = studies.write(rows, folder, study, command)
    click.echo(f"written: {where}, {where.with_suffix('.json').name}")


@deskpro.command()
@_recipe
@click.option(
    "--grid",
    "grids",
    multiple=True,
    required=True,
    metavar="KEY=VALUE,VALUE…",
    help="Values of an option; repeatable: every combination is trained.",
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="How many.")
@click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(1), help="Students at a time."
)
def sweep(
    config: Path,
    run_dir: Path | None,
    overrides: tuple[str, ...],
    force: bool,
    grids: tuple[str, ...],
    seeds: int,
    jobs: int,
) -> None:
    """Students of every combination of some options, from one cache, in one table."""
    from deskpro.pipeline import sweep as sweeps

    options, folder = _open(config, run_dir, overrides)
    rows = sweeps.run(options, folder, grids, seeds=seeds, jobs=jobs, force=force)
    click.echo(f"written: {sweeps.write(rows, folder)}")


@deskpro.command()
@_recipe
def demo(config: Path, run_dir: Path | None, overrides: tuple[str, ...], force: bool) -> None:
    """The whole pipeline on a benchmark that the project makes itself.

    Makes the benchmark where it is missing, runs every stage, trains the same student without the
    teacher's targets, and says what they were worth.
    """
    from deskpro.pipeline import demo as show

    options, folder = _open(config, run_dir, overrides)
    show.run(options, folder, force=force)


@deskpro.command("check-data")
@_CONFIG
@_RUN
@_SET
def check_data(config: Path, run_dir: Path | None, overrides: tuple[str, ...]) -> None:
    """Find the problems of a dataset and list them all; exit 2 where there are any."""
    from deskpro.stages.base.progress import summary
    from deskpro.stages.data.check import check_data as check
    from deskpro.stages.data.index import KINDS
    from deskpro.stages.data.layouts import LAYOUTS

    options, folder = _open(config, run_dir, overrides)
    layout = LAYOUTS[options.data_train]
    prepared = layout.prepared(options.data.root)
    checked = check(
        options.data.root,
        options.data_train,
        needs=KINDS if prepared else ("imgs",),
        test_needs=("imgs", "lr_face") if prepared else ("imgs",),
        incomplete=options.data.incomplete,
        file_index=folder.file_index,
    )
    for problem in checked.problems:
        click.echo(str(problem))
    facts = checked.facts(folder.left_out)
    for split in ("query", "gallery"):
        rows = checked.split(split)
        faceless = int(rows["lr_face"].isna().sum())
        facts[split] = (
            f"{len(rows)} images of {rows['pid'].nunique()} identities, {faceless} without a face"
        )
    if layout.counts is not None:
        ids, images = layout.counts.train
        facts["published"] = (
            f"train {images:,} images of {ids} identities, query {layout.counts.query:,}, "
            f"gallery {layout.counts.gallery:,}"
        )
    summary(f"check-data: {len(checked.problems)} problems in {options.data.root}", facts)
    if checked.problems:
        sys.exit(2)


@deskpro.command("import-checkpoint")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for weights.")
@click.option("--data", type=click.Path(path_type=Path), help="The set it was trained on.")
@click.option("--dataset", default="celeb", show_default=True, help="How its names are read.")
@_FORCE
def import_checkpoint(
    checkpoint: Path, out: Path, data: Path | None, dataset: str, force: bool
) -> None:
    """Turn a published checkpoint into teacher.safetensors and student.safetensors.

    The file is read without running anything in it. With --data the class order is written too,
    and the number of identities is checked.
    """
    from deskpro.pipeline.config import require_dataset
    from deskpro.stages import import_checkpoint as stage
    from deskpro.stages.base.progress import summary

    require_dataset(dataset)
    facts = stage.run(checkpoint, out, data, dataset, force)
    summary(f"import-checkpoint: {checkpoint}", facts)


@deskpro.command()
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="Weights.")
@click.option("--data", "root", required=True, type=click.Path(path_type=Path), help="The set.")
@click.option("--split", required=True, type=click.Choice(["train", "query", "gallery"]))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="An .npz file.")
@click.option("--config", type=click.Path(path_type=Path), help="A recipe for other options.")
@_SET
def embed(
    checkpoint: Path, root: Path, split: str, out: Path, config: Path | None, overrides: Any
) -> None:
    """Write the features of a split: path, raw [n, heads, D] and feature [n, heads·D]."""
    from deskpro.pipeline.config import load, override
    from deskpro.stages import embed as stage
    from deskpro.stages.base.progress import summary

    options = override(load(config, overrides), {"data.root": root})
    facts = stage.run(options, checkpoint, split, out)
    summary(f"embed: {checkpoint}", facts)


@deskpro.command("make-benchmark")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("data/benchmark"),
    show_default=True,
    help="The folder to make; it must not exist.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one per core]")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Override an option of the benchmark, such as seed=1; repeatable.",
)
def make_benchmark(out: Path, workers: int | None, overrides: tuple[str, ...]) -> None:
    """Draw the benchmark: people who change clothes, in the prepared layout."""
    from deskpro.pipeline.benchmark import make

    make(out, overrides, workers)


def main() -> None:
    """Run the command line; what the user can mend becomes one message and exit code 2."""
    with failures.report_errors():
        sys.exit(deskpro(standalone_mode=False))
