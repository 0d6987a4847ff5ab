"""The command line: a command per stage. Imports nothing heavy until a command runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import click

from deskpro.cache.file_index import FileIndex
from deskpro.pipeline import failures, messages, runner
from deskpro.pipeline.arguments import (
    DATASET,
    DEEP,
    FILE,
    PATH,
    RunArguments,
    as_words,
    part_weights,
    with_recipe,
)
from deskpro.pipeline.command_help import Between, Commands
from deskpro.pipeline.config import override
from deskpro.pipeline.inspect_cli import COMMANDS
from deskpro.pipeline.stages import STAGES, needed
from deskpro.pipeline.studies import STUDIES
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log_to
from deskpro.stages.base.run_folder import ENCODER, RunFolder
from deskpro.stages.base.stage import Digests, Stage
from deskpro.stages.targets.kinds import TARGETS


def _stage(name: str) -> click.Command:
    @click.command(name, help=STAGES[name].help)
    @with_recipe
    @DEEP
    def command(recipe: RunArguments, deep: bool) -> None:
        _run(name, *recipe.open(), force=recipe.force, deep=deep)

    return command


def _run(
    stage: Stage | str, options: Options, folder: RunFolder, *, force: bool, deep: bool
) -> None:
    digests = Digests(FileIndex(), deep)
    runner.run_stage(stage, options, folder, force=force, digests=digests)


@click.group(
    cls=Commands,
    commands=[*COMMANDS, *map(_stage, STAGES)],  # those with options of their own follow
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
)
@click.version_option(package_name="deskpro")
def deskpro() -> None:
    """Two-stage offline distillation for cloth-changing person re-identification.

    A teacher that sees restored HR faces runs once; its logits and what parsing masks show are
    cached in zarr; any number of LR students train from the cache alone.

    Completion of commands and options, in bash: eval "$(_DESKPRO_COMPLETE=bash_source deskpro)";
    zsh_source and fish_source likewise.
    """


@deskpro.command("teacher-cache", help=STAGES["teacher-cache"].help)
@with_recipe
@DEEP
@click.option(
    "--add",
    "added",
    multiple=True,
    type=click.Choice([*TARGETS]),
    help="A target to store beside those of the recipe; repeatable.",
)
def teacher_cache(recipe: RunArguments, deep: bool, added: tuple[str, ...]) -> None:
    options, folder = recipe.open()
    names = [*dict.fromkeys((*options.cache.targets, *added))]
    if added:
        messages.OPTIONS += ["--set", f"cache.targets=[{','.join(names)}]"]
    options = override(options, {"cache.targets": names})
    _run("teacher-cache", options, folder, force=recipe.force, deep=deep)


@deskpro.command()
@with_recipe
@DEEP
@click.option("--explain", is_flag=True, help="Show schemes, methods and rules, and do nothing.")
def prepare(recipe: RunArguments, deep: bool, explain: bool) -> None:
    """Make masks, LR and HR faces from a raw dataset.

    The recipe's section prepare names the raw images and the method of each of the four steps;
    data.root is the folder to make. Its manifest lies there, so that all runs share it.
    """
    if explain:
        from deskpro.pipeline.explain import explain_preparation

        explain_preparation(recipe.options().prepare)
    else:
        _run("prepare", *recipe.open(), force=recipe.force, deep=deep)


@deskpro.command("eval")
@with_recipe
@DEEP
@click.option(
    "--checkpoint",
    type=PATH,
    help="Evaluate these weights, or this exported folder, alone; needs --data.",
)
@click.option(
    "--features",
    type=PATH,
    help="Evaluate these features of any network: .npz, .parquet, .csv beside .npy, or a folder of "
    ".npy files; needs --data or a recipe.",
)
@click.option(
    "--weights",
    metavar="PART=W,…",
    help="How much each part of --features counts in `all`.  [default: all equally]",
)
@click.option(
    "--metric",
    type=click.Choice(["cosine", "euclidean"]),
    help="How --features are compared.  [default: cosine]",
)
@click.option("--data", "root", type=PATH, help="The dataset, with --checkpoint or --features.")
@DATASET
@click.option(
    "--gallery-network",
    type=click.Choice(["student", "teacher"]),
    help="teacher: also rank its features of the gallery's HR faces, as `face_hr`.  [default: "
    "eval.gallery_network of the recipe]",
)
def eval_(
    recipe: RunArguments,
    deep: bool,
    checkpoint: Path | None,
    features: Path | None,
    weights: str | None,
    metric: Literal["cosine", "euclidean"] | None,
    root: Path | None,
    dataset: str | None,
    gallery_network: str | None,
) -> None:
    """Evaluate the student: mAP and CMC by every protocol.

    The streams face and body are scored alone and together, as `all`.
    """
    if features is None and (weights is not None or metric is not None):
        raise click.UsageError("--weights and --metric need --features")
    if features is None and (checkpoint is None) != (root is None):
        raise click.UsageError(
            "--checkpoint needs --data, the dataset, and --data needs --checkpoint"
        )
    if gallery_network is not None:
        network = f"eval.gallery_network={gallery_network}"
        recipe = recipe._replace(overrides=(*recipe.overrides, network))
    stage: Stage | str = "eval"
    if features is not None:
        if checkpoint is not None or gallery_network is not None:
            raise click.UsageError("--features takes no --checkpoint and no --gallery-network")
        if root is None and (recipe.resolved().config is None or dataset is not None):
            raise click.UsageError(
                "--features needs --data, the dataset, or a recipe with --config"
            )
        from deskpro.stages.evaluate_features import EvaluateFeatures

        words = {"--features": features, "--weights": weights, "--metric": metric}
        name = f"features-{features.stem}"
        options, folder = _open_alone(recipe, name, words, root, dataset)
        parts = None if weights is None else part_weights(weights)
        stage = EvaluateFeatures(options, folder, features, parts, metric or "cosine")
    elif checkpoint is not None:
        from deskpro.stages.evaluate import Evaluate

        file = checkpoint / ENCODER if (checkpoint / ENCODER).is_file() else checkpoint
        if not file.is_file():
            raise InputError(f"{file}: no such file. --checkpoint takes a weights file")
        name, words = f"eval-{checkpoint.stem}", {"--checkpoint": checkpoint}
        options, folder = _open_alone(recipe, name, words, root, dataset)
        stage = Evaluate(options, folder, file)
    else:
        options, folder = recipe.open()
    _run(stage, options, folder, force=recipe.force, deep=deep)


def _open_alone(
    recipe: RunArguments,
    name: str,
    words: Mapping[str, object],
    root: Path | None,
    dataset: str | None,
) -> tuple[Options, RunFolder]:
    """Options and folder of weights or features that are evaluated without a run's other stages.

    Commands that errors advise then have the options of `words`, the first of which names what is
    evaluated; name: of the folder, unless --run gives one.
    """
    if recipe.source is not None:
        raise click.UsageError("--checkpoint and --features are evaluated alone: leave --from out")
    words = {**words, "--data": root, "--dataset": dataset}
    messages.OPTIONS[:] = [*as_words(words), *recipe.words()]
    options = recipe.options() if root is None else recipe.of_dataset(root, dataset)
    folder, option = RunFolder(recipe.run or Path("runs") / name), next(iter(words))
    if any(folder.manifest(stage).exists() for stage in STAGES if stage != "eval"):
        raise InputError(
            f"{folder.path}: holds other stages of a run. For its own student leave {option} "
            f"out; for that of {option} give another folder with --run"
        )
    log_to(folder.path)
    return options, folder


@deskpro.command("all")
@with_recipe
@click.option("--update", is_flag=True, help="Rebuild what is stale, too, and list it.")
def all_(recipe: RunArguments, update: bool) -> None:
    """Run every stage that is not fresh.

    With --force every stage runs.
    """
    (options, folder), digests = recipe.open(), Digests(FileIndex())
    given = RunFolder(folder.upstream).given() is not None and not recipe.force
    for name in needed(options, given=given):
        runner.run_stage(name, options, folder, force=recipe.force, update=update, digests=digests)


@deskpro.command()
@with_recipe
@click.option(
    "--replicates",
    default=5,
    type=Between(1, 1000),
    help="Worlds, each with a teacher and students of its own; the first is the run.",
)
@click.option("--jobs", default=1, type=Between(1, 1000), help="Replicates at a time.")
@click.option(
    "--study",
    default="parts",
    type=click.Choice([*STUDIES]),
    help=" ".join(f"{name}: {study.help}." for name, study in STUDIES.items()),
)
@click.option(
    "--results", type=FILE, help="The CSV of what was measured.  [default: RUN/results.csv]"
)
def ablation(
    recipe: RunArguments, replicates: int, jobs: int, study: str, results: Path | None
) -> None:
    """Measure what parts of the recipe are worth.

    It is repeated in replicates: a world, a teacher and students each. One that is in the file,
    by the same recipe and code, isn't trained again.
    """
    from deskpro.pipeline.ablation import StudiedRun, run_study

    run = StudiedRun(*recipe.open(), recipe.force, replicates, jobs, results)
    click.echo(f"written: {run_study(run, study)}")


@deskpro.command()
@with_recipe
@click.option(
    "--grid",
    "grids",
    multiple=True,
    required=True,
    metavar="KEY=VALUE,VALUE…",
    help="Values of an option; repeatable: every combination is trained.",
)
@click.option("--seeds", default=3, type=Between(1, 1000), help="Seeds of each combination.")
@click.option("--jobs", default=1, type=Between(1, 1000), help="Students at a time.")
@click.option(
    "--one-by-one", is_flag=True, help="Vary one option at a time; the others are the recipe's."
)
@click.option(
    "--print-commands",
    is_flag=True,
    help="Make teacher and cache, and print a command per student, for a scheduler.",
)
def sweep(
    recipe: RunArguments,
    grids: tuple[str, ...],
    seeds: int,
    jobs: int,
    one_by_one: bool,
    print_commands: bool,
) -> None:
    """Train students of every combination of some options.

    All students train from one cache; one table shows them.
    """
    from deskpro.pipeline import sweep as sweeping

    if print_commands and recipe.force:
        raise click.UsageError("--print-commands keeps students that are fresh: leave --force out")
    run = sweeping.SweptRun(*recipe.open(), recipe.force, seeds, jobs, one_by_one)
    if print_commands:
        click.echo("\n".join(sweeping.commands(run, grids)))
    else:
        click.echo(f"written: {sweeping.sweep(run, grids)}")


@deskpro.command()
@with_recipe
def demo(recipe: RunArguments) -> None:
    """Run the whole pipeline on a synthetic benchmark.

    Draws the benchmark where it is missing, runs every stage, trains the same student without the
    teacher's targets, measures the gain from distillation, and writes the report.
    """
    from deskpro.pipeline import demo as demonstration

    for line in demonstration.run(*recipe.open(), recipe.force):
        click.echo(line)


def main() -> None:
    """Run the command line; what the user can fix becomes one message and exit code 2."""
    messages.OPTIONS.clear()
    with failures.report_errors():
        sys.exit(deskpro(prog_name="deskpro", standalone_mode=False))
