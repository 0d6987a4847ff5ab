"""`deskpro cache …`: look inside a target cache."""

from __future__ import annotations

import sys
from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


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

    _report(cache_tools.verify(path))
    log(f"cache verify: {path} is whole")


@cache.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--samples", default=64, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Which.")
@click.option("--deep", is_flag=True, help="Read every image again, whatever its time of change.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As device=cpu.")
def audit(run: Path, samples: int, seed: int, deep: bool, overrides: tuple[str, ...]) -> None:
    """Ask the teacher again about random (sample, view); exit code 1 if the cache says otherwise.

    RUN is a run folder; its cache, teacher and images must be there.
    """
    from deskpro.pipeline import stages as plan
    from deskpro.stages.base.progress import summary

    report = plan.audit(run, overrides, samples=samples, seed=seed, deep=deep)
    summary(f"cache audit: {run}", report.facts)
    _report(report.differences)


def _report(lines: list[str]) -> None:
    """Print what was found, and exit with 1 if that is anything."""
    for line in lines:
        click.echo(line)
    if lines:
        sys.exit(1)
