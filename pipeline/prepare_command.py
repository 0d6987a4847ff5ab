"""`deskpro prepare`: from a raw dataset to the prepared layout."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from deskpro.stages.base.prepare_options import Prepare


@click.command()
@click.option("--config", type=click.Path(path_type=Path), help="The recipe, a YAML file.")
@click.option("--run", type=click.Path(path_type=Path), hidden=True)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override an option; repeatable."
)
@click.option("--force", is_flag=True, help="Run although the output exists.")
@click.option("--deep", is_flag=True, help="Read every file again, whatever its time of change.")
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

    The recipe's section prepare says where the raw images lie and how each of the four steps is
    done; data.root is the folder to make. Its record lies there, so that all runs share it.
    """
    from deskpro.pipeline import runner as running
    from deskpro.pipeline.config import load
    from deskpro.stages.base.errors import InputError
    from deskpro.stages.base.run_folder import RunFolder

    if not explain and config is None:
        raise click.UsageError("give a recipe with --config, or --explain")
    options = load(config, overrides)
    if explain:
        _explain(options.prepare)
        return
    if options.prepare is None:
        raise InputError(
            f"{config}: has no section prepare, which says where the raw dataset lies. Give it "
            "prepare.root; deskpro prepare --explain shows what else it may say"
        )
    running.run_stage("prepare", options, RunFolder(run or Path("runs")), force=force, deep=deep)


def _explain(settings: Prepare | None) -> None:
    """The tables that preparation follows; what the recipe chose is marked with a star."""
    from deskpro.stages.base.prepare_options import Prepare
    from deskpro.stages.preparation.methods import METHODS
    from deskpro.stages.preparation.schemes import CHANNELS, SCHEMES

    chosen = settings or Prepare()
    click.echo("Steps, and the methods of each (* is chosen):")
    for step, methods in METHODS.items():
        for name, method in methods.items():
            mark = "*" if getattr(chosen, step).method == name else " "
            click.echo(f"  {mark} prepare.{step}.method={name}")
            click.echo(f"      {method.does}")
            for package in method.needs:
                here = "" if find_spec(package) else "; missing: pip install '.[prepare]'"
                click.echo(f"      needs {package}{here}")
    click.echo("\nSchemes of label maps, and the channel of the mask that each class goes to:")
    for name, scheme in SCHEMES.items():
        mark = "*" if chosen.parsing.scheme == name else " "
        click.echo(f"  {mark} prepare.parsing.scheme={name}: {scheme.title} ({scheme.source})")
        for channel, colour in zip((*CHANNELS, ""), ("red", "green", "blue", ""), strict=True):
            names = ", ".join(f"{i} {scheme.names[i]}" for i in scheme.ids(channel))
            title = f"{channel} ({colour})" if channel else "background"
            click.echo(f"      {title:<16} {names or '–'}")
        if scheme.face is None:
            click.echo("      no class for the face: the back of a head counts as a face")
    click.echo(f"\n{_own_rule(chosen)}")


def _own_rule(chosen: Prepare) -> str:
    own = chosen.own
    return (
        "A folder of one's own (data_train: own):\n"
        f"  name   {own.name}\n"
        "         must match the path of each image below prepare.root; its groups are pid and,\n"
        "         where the name says them, camid, clothes, split (train, query, gallery).\n"
        "         Cameras that aren't numbers are numbered in the order of their names. Without\n"
        "         camid, each image of an identity counts as a camera of its own.\n"
        f"  test   {own.test:g} of the identities are held out (seed {own.seed}), where the name\n"
        "         has no split. An identity with one image goes to the gallery.\n"
        f"  query  {own.query} of each held-out identity and camera are queries, but\n"
        "         never all of them; the rest is gallery."
    )
