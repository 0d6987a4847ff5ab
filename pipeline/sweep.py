"""Many students from one cache: every combination of some options, with several seeds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import yaml

from deskpro.cache.files import write_aside
from deskpro.pipeline import config
from deskpro.pipeline import runner as running
from deskpro.pipeline.ablation import spread
from deskpro.pipeline.studies import Student, Variants, members, primary_streams, train_and_evaluate
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import table
from deskpro.stages.base.run_folder import RunFolder


def combinations(grids: Iterable[str]) -> Variants:
    """`key=value,value …` → name of each combination → its options. Values are YAML.

    Raises InputError for a grid that isn't one, or an option that is named twice.
    """
    axes: dict[str, list[object]] = {}
    for grid in grids:
        key, _, values = grid.partition("=")
        if key not in config.option_names() or not values:
            raise InputError(
                f"--grid {grid}: must be OPTION=VALUE,VALUE…, such as kd_loss.T=1,2,5; the options "
                "are those of the recipe"
            )
        if key in axes:
            raise InputError(f"--grid {grid}: {key} has a grid already")
        axes[key] = yaml.safe_load(f"[{values}]")
    return {
        ",".join(f"{key}={value}" for key, value in zip(axes, values, strict=True)): dict(
            zip(axes, values, strict=True)
        )
        for values in itertools.product(*axes.values())
    }


def run(
    options: Options, folder: RunFolder, grids: Iterable[str], *, seeds: int, jobs: int, force: bool
) -> pd.DataFrame:
    """Train and evaluate every combination with every seed; go on where an earlier call stopped.

    Returns a row per combination and stream: combination, stream, seeds, mAP, mAP_sd, rank1,
    rank1_sd (percent; sd with n−1), size, cost, minutes (mean of training).
    """
    variants = combinations(grids)
    for name, changes in variants.items():  # all must be possible, before any work
        try:
            config.override(options, changes)
        except ValueError as error:
            raise InputError(f"--grid: {name} is impossible: {error}") from None
    running.run_stage("teacher-cache", options, folder, chain=True)
    students = members(options, folder, variants, seeds, "sweep")
    train_and_evaluate(students, jobs, force)
    rows = pd.DataFrame([row for student in students for row in _rows(student)])
    return (
        rows.groupby(["combination", "stream"], sort=False)
        .agg(
            seeds=("seed", "size"),
            mAP=("mAP", "mean"),
            mAP_sd=("mAP", "std"),
            rank1=("rank1", "mean"),
            rank1_sd=("rank1", "std"),
            size=("size", "first"),
            cost=("cost", "first"),
            minutes=("minutes", "mean"),
        )
        .reset_index()
    )


def _rows(student: Student) -> list[dict[str, object]]:
    record = student.home.read_manifest("train-student")
    assert record is not None
    streams = primary_streams(student)
    return [
        {
            "combination": student.variant,
            "seed": student.seed,
            "stream": stream,
            "mAP": 100 * numbers["mAP"],
            "rank1": 100 * numbers["cmc"][0],
            "size": record["facts"]["size"],
            "cost": record["facts"]["cost"],
            "minutes": record["seconds"] / 60,
        }
        for stream, numbers in streams.items()
    ]


def write(rows: pd.DataFrame, folder: RunFolder) -> Path:
    """`sweep.csv` into the run folder; prints the table."""
    columns = ("combination", "stream", "seeds", "mAP %", "rank-1 %", "size", "cost", "minutes")
    lines = [
        (
            row["combination"],
            row["stream"],
            str(row["seeds"]),
            spread(row["mAP"], row["mAP_sd"]),
            spread(row["rank1"], row["rank1_sd"]),
            row["size"].replace(" parameters", ""),
            row["cost"].replace(" multiply-adds a sample", " MACs"),
            f"{row['minutes']:.1f}",
        )
        for row in rows.to_dict("records")
    ]
    table("sweep", columns, lines)
    with write_aside(folder.path / "sweep.csv") as aside:
        rows.to_csv(aside, index=False)
    return folder.path / "sweep.csv"
