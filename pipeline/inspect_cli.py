"""The commands beside the stages: inspect data, caches and runs; import, embed, draw, compare."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from deskpro.pipeline import cache_cli, config, gallery_cli, recipes
from deskpro.pipeline.arguments import (
    CONFIG,
    DATASET,
    FILE,
    FOLDER,
    PATH,
    RUN,
    SET,
    RunArguments,
    fail_with,
    options_of,
)
from deskpro.pipeline.command_help import Between
from deskpro.pipeline.explain import explain_names
from deskpro.stages.base.progress import log, log_to, summary, working
from deskpro.stages.base.run_folder import RunFolder

_COUNT = Between(0)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option(
    "--out",
    type=FOLDER,
    default=Path("runs/compare"),
    help="The folder for compare.csv, compare.png and differences.png.",
)
@click.option("--latex", is_flag=True, help="Also write the tables to compare.tex.")
@click.option("--markdown", is_flag=True, help="Also write them to compare.md.")
@click.option("--html", is_flag=True, help="Also write a page of queries that one run gets right.")
@click.option("--anyway", is_flag=True, help="Compare what runs of other protocols or data share.")
def compare(
    runs: tuple[Path, ...], out: Path, latex: bool, markdown: bool, html: bool, anyway: bool
) -> None:
    """Compare evaluated runs with the first.

    Tables and charts, paired by query and tested by identity. p is adjusted for the number of
    differences in a table.
    """
    from deskpro.stages import compare as stage

    if len(runs) < 2:
        raise click.UsageError(f"{len(runs)} run given, two are needed: deskpro compare RUN RUN …")
    with working("compare"):
        given = {"tex": latex, "md": markdown, "html": html}
        formats = [name for name, wanted in given.items() if wanted]
        facts = stage.run(runs, out, formats=formats, anyway=anyway)
    summary("compare: done", facts)


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=FILE, help="File.  [default: RUN/report.html]")
@click.option("--good", default=6, type=_COUNT, help="Good queries to show.")
@click.option("--failed", default=12, type=_COUNT, help="Failed queries.")
@click.option(
    "--samples", default=8, type=_COUNT, help="Queries, and training samples, with attention."
)
@click.option(
    "--against",
    type=FOLDER,
    multiple=True,
    help="A run to say the difference from; "
    "repeatable.  [default: ablation/plain and ablation/teacher of RUN]",
)
@click.option("--anyway", is_flag=True, help="Report the evaluation of an earlier student.")
@SET
def report(run: Path, out: Path | None, overrides: tuple[str, ...], **shown: Any) -> None:
    """Write the report of a run: one HTML file.

    The difference from other runs, figures with their intervals, what goes wrong, curves, ranked
    lists of good and failed queries, the student's attention on queries and training samples, and
    the provenance of everything. It needs no network, and RUN must have been evaluated.
    """
    from deskpro.stages import report as stage

    log_to(run)
    folder = RunFolder.open(run)
    command = shlex.join(["eval", "--run", str(run)])
    options = options_of(folder.manifest("eval"), overrides, folder.metrics, command)
    with working("report"):
        facts = stage.run(options, folder, out or run / "report.html", **shown)
    summary(f"report: {run}", facts)


@click.command("check-data")
@CONFIG
@RUN
@SET
@click.option("--explain", is_flag=True, help="Show how names are read, and what is left out.")
def check_data(
    config: Path | None, run: Path | None, overrides: tuple[str, ...], explain: bool
) -> None:
    """List every problem of a dataset. Exit code 2 where there are any."""
    from deskpro.stages import check_data as stage

    options, folder = RunArguments(config, run, overrides=overrides).open()
    with working("check-data"):
        problems, facts, checked = stage.run(options, folder)
    if explain:
        explain_names(options, checked)
    for problem in problems:
        click.echo(str(problem))
    noun = "problem" + "s" * (len(problems) != 1)
    summary(f"check-data: {len(problems)} {noun} in {options.data.root}", facts)
    if problems:
        sys.exit(2)


@click.command("import-checkpoint")
@click.argument("checkpoint", type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder for weights.")
@click.option("--data", type=PATH, help="The dataset it was trained on.")
@DATASET
@click.option("--force", is_flag=True, help="Replace weights that exist.")
def import_checkpoint(
    checkpoint: Path, out: Path, data: Path | None, dataset: str | None, force: bool
) -> None:
    """Convert a published checkpoint to safetensors.

    Writes teacher.safetensors and student.safetensors, whichever it has. Nothing in the file is
    executed. With --data the class order is written too, and the number of identities is checked.
    """
    from deskpro.stages import import_checkpoint as stage

    name = config.require_dataset(dataset or "celeb")
    with working("import-checkpoint"):
        facts = stage.run(checkpoint, out, data, name, force)
    summary(f"import-checkpoint: {checkpoint}", facts)


@click.command()
@click.option("--checkpoint", required=True, type=PATH, help="Weights.")
@click.option("--data", "root", required=True, type=PATH, help="The dataset.")
@DATASET
@click.option("--split", required=True, type=click.Choice(["train", "query", "gallery"]))
@click.option("--out", required=True, type=FILE, help="An .npz file.")
@click.option("--config", "recipe", type=PATH, help="A recipe for other options.")
@SET
def embed(
    recipe: Path | None,
    overrides: tuple[str, ...],
    root: Path,
    dataset: str | None,
    checkpoint: Path,
    split: str,
    out: Path,
) -> None:
    """Write the features of a split to an .npz file.

    It has path [n], raw [n, heads, D] and feature [n, heads·D], whose dot products rank as eval
    does by one stream, or by both at eval.face_weight 0.5.
    """
    from deskpro.stages import embed as stage

    options = RunArguments(recipe, overrides=overrides).of_dataset(root, dataset)
    with working("embed"):
        facts = stage.run(options, checkpoint, split, out)
    summary(f"embed: {checkpoint}", facts)


@click.command()
@click.argument("run", type=FOLDER)
@click.option("--out", type=FOLDER, help="The folder to make.  [default: RUN/export]")
@click.option("--streams", metavar="NAME,NAME", help="face, body or both.  [default: all it has]")
@click.option(
    "--format",
    "runtime",
    type=click.Choice(["onnx", "torch"]),
    default="onnx",
    help="ONNX files, or programs of torch.export.",
)
@click.option(
    "--normalise",
    type=click.Choice(["outside", "inside"]),
    default="outside",
    help="Who normalises pixels: the caller, or the file (*.normalised.onnx, which takes uint8).",
)
@click.option(
    "--dim",
    type=click.IntRange(min=1),
    help="Numbers of each part of a vector, by directions of training images.  [default: all]",
)
@click.option("--int8", is_flag=True, help="Networks of int8 numbers (*.int8.onnx).")
@click.option("--force", is_flag=True, help="Replace an exported folder that exists.")
@SET
def export(
    run: Path,
    out: Path | None,
    streams: str | None,
    force: bool,
    overrides: tuple[str, ...],
    **chosen: Any,
) -> None:
    """Write the student of an evaluated run for other programs.

    A folder of network files, encoder.json that says how they are used, and a README.md with a
    program and their accuracy. They are evaluated as they are: exit code 1 where they score
    otherwise than the student (but --int8, of which the loss is told). --dim and --int8 read
    training images, and held-out ones for what scores mean.
    """
    from deskpro.pipeline import exporting
    from deskpro.stages.export import Ask, DiffersError

    log_to(run)
    names = tuple(filter(None, (streams or "").split(",")))
    try:
        facts = exporting.export(run, out, Ask(streams=names, **chosen), overrides, force)
    except DiffersError as error:
        fail_with(error.args)
    else:
        summary(f"export: {run}", facts)


@click.command()
@click.argument("prefix", default="")
@click.option("--markdown", is_flag=True, help="Tables in Markdown.")
def options(prefix: str, markdown: bool) -> None:
    """List the options of a recipe, with their meaning.

    Each with its default, its allowed values and the stages that it makes stale. PREFIX is an
    option or a section, such as kd_loss.
    """
    from deskpro.pipeline import option_table

    found = option_table.find(prefix)
    shown = option_table.as_markdown(found) if markdown else option_table.as_text(found)
    click.echo(shown.rstrip("\n"))


@click.command()
@click.argument("name", default="")
@click.argument("file", required=False, type=FILE)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def init(name: str, file: Path | None, force: bool) -> None:
    """Copy a recipe to a file, to change it.

    FILE is NAME.yaml in this folder, if not given. Without NAME the recipes are listed.
    """
    if not name:
        click.echo("\n".join(f"{known:<13} {recipes.about(known)}" for known in recipes.names()))
        click.echo("\nTo copy one: deskpro init NAME [FILE]")
        return
    file = file or Path(f"{name}.yaml")
    recipes.copy(name, file, force=force)
    first = "check-data" if config.load(file).prepare is None else "prepare"
    typed = shlex.join(["deskpro", first, "--config", str(file)])
    log(f"init: {file} written. Change it, then type: {typed}")


@click.command("make-benchmark")
@click.option(
    "--out",
    type=PATH,
    default=Path("data/benchmark"),
    help="The folder to make; it must not exist.",
)
@click.option("--workers", type=Between(1, 1024), help="Processes.  [default: one per core]")
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="As seed=1; repeatable."
)
def make_benchmark(out: Path, workers: int | None, overrides: tuple[str, ...]) -> None:
    """Draw a synthetic benchmark in the prepared layout."""
    from deskpro.pipeline.make_benchmark import make_benchmark

    make_benchmark(out, overrides, workers)


COMMANDS = (
    cache_cli.cache,
    check_data,
    compare,
    embed,
    export,
    gallery_cli.gallery,
    import_checkpoint,
    init,
    make_benchmark,
    options,
    report,
)
