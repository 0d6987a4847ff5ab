"""`deskpro report RUN`: a run as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path), help="File.  [default: RUN/report.html]")
@click.option(
    "--good", default=6, show_default=True, type=click.IntRange(0), help="Good queries to show."
)
@click.option(
    "--failed",
    default=12,
    show_default=True,
    type=click.IntRange(0),
    help="Failed queries to show.",
)
@click.option(
    "--samples",
    default=8,
    show_default=True,
    type=click.IntRange(0),
    help="Training samples to show.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="For example data.root=DIR."
)
def report(
    run: Path,
    out: Path | None,
    good: int,
    failed: int,
    samples: int,
    overrides: tuple[str, ...],
) -> None:
    """Write the report of an evaluated run: one HTML file that needs no network.

    It shows accuracy with intervals, curves, ranked lists of good and failed queries, the student's
    attention beside its target, and the provenance of every output.
    """
    from deskpro.pipeline import config
    from deskpro.stages import report as stage
    from deskpro.stages.base.errors import InputError
    from deskpro.stages.base.progress import summary
    from deskpro.stages.base.run_folder import RunFolder

    folder = RunFolder(run)
    record = folder.read_manifest("eval")
    if record is None or not folder.metrics.exists():
        raise InputError(
            f"{run}: no metrics.json with its manifest. To evaluate the run: make eval"
        )
    facts = stage.run(
        config.restore(record["config"], overrides),
        folder,
        out or run / "report.html",
        good=good,
        failed=failed,
        samples=samples,
    )
    summary(f"report: {run}", facts)
