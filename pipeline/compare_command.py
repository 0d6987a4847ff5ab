"""`deskpro compare RUN RUN …`: compare evaluated runs."""

from __future__ import annotations

from pathlib import Path

import click

from deskpro.stages.base.errors import InputError


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/compare"),
    show_default=True,
    help="The folder for compare.csv and compare.png.",
)
@click.option(
    "--anyway", is_flag=True, help="Compare what runs share whose protocols or data differ."
)
def compare(runs: tuple[Path, ...], out: Path, anyway: bool) -> None:
    """Compare runs with the first: one table and one chart, with a paired test over queries."""
    from deskpro.stages import compare as stage
    from deskpro.stages.base.progress import summary

    if len(runs) < 2:
        raise InputError(
            f"{len(runs)} run given; at least two are needed: deskpro compare RUN RUN …"
        )
    summary("compare: done", stage.run(runs, out, anyway=anyway))
