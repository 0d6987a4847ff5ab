"""The command line: a command per stage. Imports nothing heavy until a command runs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from deskpro.pipeline import failures
from deskpro.pipeline.inspect_cli import COMMANDS
from deskpro.pipeline.stages import STAGES

if TYPE_CHECKING:
    from deskpro.stages.base.options import Options
    from deskpro.stages.base.run_folder import RunFolder

_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_DEEP = click.option("--deep", is_flag=True, help="Read every file again, known or not.")
_SEEDS = click.option(
    "--seeds", default=3, show_default=True, type=click.IntRange(1), help="How many."
)
_JOBS = click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(1), help="Students at a time."
)


class Recipe(NamedTuple):
    """What every stage's command is given."""

    options: Options
    folder: RunFolder
    force: bool


def _recipe(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every stage takes; the command gets a `Recipe` for them."""

    @click.option("--config", type=_PATH, help="The recipe, YAML.  [default: RUN/config.yaml]")
    @click.option("--run", type=_FOLDER, help="The run folder.  [default: runs/<config name>]")
    @click.option("--from", "source", type=_FOLDER, help="Use teacher and targets of this run.")
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Repeatable.")
    @click.option("--force", is_flag=True, help="Run although the output exists; replace it.")
    @functools.wraps(command)
    def wrapped(
        config: Path | None,
        run: Path | None,
        source: Path | None,
        overrides: tuple[str, ...],
        force: bool,
        **others: object,
    ) -> None:
        command(Recipe(*open_run(config, run, source, overrides), force), **others)

    return wrapped


def open_run(
    config: Path | None,
    run: Path | None,
    source: Path | None = None,
    overrides: tuple[str, ...] = (),
) -> tuple[Options, RunFolder]:
    """Options and folder of a run: of a recipe, or of a run folder that has its own."""
    from deskpro.pipeline import messages
    from deskpro.pipeline.config import load
    from deskpro.stages.base.run_folder import RunFolder

    if config is None and run is None:
        raise click.UsageError("give a recipe with --config, or a run folder with --run")
    messages.INVOCATION.__init__(config, run, source, overrides)  # type: ignore[misc]
    if config is not None:
        options = load(config, overrides)
        name = config.stem + (f"-{options.tag}" if options.tag else "")
        return options, RunFolder.open(run or Path("runs") / name, source)
    assert run is not None
    if not (run / "config.yaml").is_file():
        raise click.UsageError(f"{run} has no config.yaml; give a recipe with --config")
    return load(run / "config.yaml", overrides), RunFolder.open(run, source)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="deskpro")
def deskpro() -> None:
    """Two-stage offline distillation for cloth-changing person re-identification.

    A teacher that sees restored HR faces and parsing masks runs once; its logits and spatial
    attention are cached in zarr; any number of LR students train from the cache alone.
    """


for _command in COMMANDS:
    deskpro.add_command(_command)


def _run(name: str, recipe: Recipe, deep: bool) -> None:
    from deskpro.cache.file_index import FileIndex
    from deskpro.pipeline import runner
    from deskpro.stages.base.stage import Digests

    digests = Digests(FileIndex(), deep)
    runner.run_stage(name, recipe.options, recipe.folder, force=recipe.force, digests=digests)


def _stage(name: str, text: str) -> None:
    @deskpro.command(name, help=text)
    @_recipe
    @_DEEP
    def command(recipe: Recipe, deep: bool) -> None:
        _run(name, recipe, deep)


for _name, _row in STAGES.items():
    _stage(_name, _row.help)  # those with options of their own are defined again below


@deskpro.command()
@click.option("--config", type=_PATH, help="The recipe, YAML.")
@click.option("--run", type=_PATH, hidden=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Repeatable.")
@click.option("--force", is_flag=True, help="Run although the output exists.")
@_DEEP
@click.option("--explain", is_flag=True, help="Show schemes, methods and rules, and do nothing.")
def prepare(
    config: Path | None,
    run: Path | None,
    overrides: tuple[str, ...],
    force: bool,
    deep: bool,
    explain: bool,
) -> None:
    """Make the prepared layout from a raw dataset: label maps, masks, LR and HR faces.

    The recipe's section prepare names the raw images and the method of each of the four steps;
    data.root is the folder to make. Its manifest lies there, so that all runs share it.
    """
    from deskpro.pipeline.config import load
    from deskpro.pipeline.explain import explain_preparation

    if explain:
        explain_preparation(load(config, overrides).prepare)
        return
    _run("prepare", Recipe(*open_run(config, run, None, overrides), force), deep)


@deskpro.command("eval")
@click.option("--config", type=_PATH, help="The recipe, YAML.  [default: RUN/config.yaml]")
@click.option("--run", type=_FOLDER, help="The run folder.  [default: runs/<config name>]")
@click.option("--from", "source", type=_FOLDER, help="Use teacher and targets of this run.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Repeatable.")
@click.option("--force", is_flag=True, help="Run although the output exists; replace it.")
@_DEEP
@click.option("--checkpoint", type=_PATH, help="Evaluate these weights alone; needs --data.")
@click.option("--data", "root", type=_PATH, help="The dataset, with --checkpoint.")
@click.option("--dataset", default="celeb", show_default=True, help="How its names are read.")
def eval_(
    config: Path | None,
    run: Path | None,
    source: Path | None,
    overrides: tuple[str, ...],
    force: bool,
    deep: bool,
    checkpoint: Path | None,
    root: Path | None,
    dataset: str,
) -> None:
    """Evaluate the student by every protocol of the dataset, for face, body and all."""
    from deskpro.pipeline import evaluation
    from deskpro.pipeline.config import load

    if checkpoint is None:
        if root is not None:
            raise click.UsageError("--data goes with --checkpoint")
        return _run("eval", Recipe(*open_run(config, run, source, overrides), force), deep)
    if root is None:
        raise click.UsageError("--checkpoint needs --data, the folder of the dataset")
    options = evaluation.on_dataset(load(config, overrides), root, dataset)
    return evaluation.evaluate_weights(options, checkpoint, run, force=force, deep=deep)


@deskpro.command("all")
@_recipe
@click.option("--update", is_flag=True, help="Rebuild what is stale, too, and say so.")
def all_(recipe: Recipe, update: bool) -> None:
    """Every stage that is not fresh, in order; with --force every stage."""
    from deskpro.cache.file_index import FileIndex
    from deskpro.pipeline import runner, stages
    from deskpro.stages.base.stage import Digests

    digests = Digests(FileIndex())
    for name in stages.needed(recipe.options):
        runner.run_stage(
            name, recipe.options, recipe.folder, force=recipe.force, update=update, digests=digests
        )


@deskpro.command()
@_recipe
@_SEEDS
@_JOBS
@click.option(
    "--study",
    default="parts",
    show_default=True,
    type=click.Choice(["parts", "views"]),
    help="parts: plain, +KD, +attention, both. views: how many, matched or not, live teacher.",
)
def ablation(recipe: Recipe, seeds: int, jobs: int, study: str) -> None:
    """What parts of the recipe are worth over several seeds, all students from one cache."""
    from deskpro.pipeline import studies

    click.echo(f"written: {studies.ablation(*recipe, study=study, seeds=seeds, jobs=jobs)}")


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
@_SEEDS
@_JOBS
def sweep(recipe: Recipe, grids: tuple[str, ...], seeds: int, jobs: int) -> None:
    """Students of every combination of some options, from one cache, in one table."""
    from deskpro.pipeline import studies

    click.echo(f"written: {studies.sweep(*recipe, grids=grids, seeds=seeds, jobs=jobs)}")


@deskpro.command()
@_recipe
def demo(recipe: Recipe) -> None:
    """The whole pipeline on a synthetic benchmark.

    Draws the benchmark where it is missing, runs every stage, trains the same student without the
    teacher's targets, and measures the gain from distillation.
    """
    from deskpro.pipeline import demo as demonstration

    demonstration.run(*recipe)


def main() -> None:
    """Run the command line; what the user can fix becomes one message and exit code 2."""
    with failures.report_errors():
        sys.exit(deskpro(standalone_mode=False))
