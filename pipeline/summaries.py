"""What the students of a study were worth: means over seeds, paired differences, a chart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from deskpro.pipeline.tables import TEACHER
from deskpro.stages.metrics.intervals import interval, t_interval


def summarise(rows: pd.DataFrame, base: str) -> pd.DataFrame:
    """Mean and standard deviation (n−1) over seeds, and the paired difference from a variant.

    Returns:
        A row per variant and stream, in per cent: variant, stream, protocol, queries, seeds, mAP,
        mAP_sd, rank1, rank1_sd, parameters, macs, minutes (mean of training), and of mAP
        difference, low, high (see `_difference`). An sd of one seed is nan.
    """
    found = (
        rows.groupby(["variant", "stream"], sort=False)
        .agg(
            protocol=("protocol", "first"),
            queries=("queries", "first"),
            seeds=("seed", "size"),
            mAP=("mAP", lambda values: 100 * values.mean()),
            mAP_sd=("mAP", lambda values: 100 * values.std()),
            rank1=("rank1", lambda values: 100 * values.mean()),
            rank1_sd=("rank1", lambda values: 100 * values.std()),
            parameters=("parameters", "first"),
            macs=("macs", "first"),
            minutes=("minutes", "mean"),
        )
        .reset_index()
    )
    parts = dict([*rows.groupby(["variant", "stream"])])
    changes = [
        _difference(parts[variant, stream], parts.get((base, stream)))
        for variant, stream in zip(found["variant"], found["stream"], strict=True)
    ]
    found[["difference", "low", "high"]] = changes
    return found


def _difference(rows: pd.DataFrame, base: pd.DataFrame | None) -> list[float]:
    """The mean difference of mAP from `base` and its 95 % interval, in per cent: over seeds by
    Student's t, or of one seed over identities; nan where nothing can be paired."""
    from deskpro.stages.compare import read_queries

    variant, protocol, stream = (
        str(rows[name].iat[0]) for name in ("variant", "protocol", "stream")
    )
    if base is None or variant == TEACHER or rows.equals(base) or {*base["protocol"]} != {protocol}:
        return [math.nan] * 3
    if len(rows) > 1:
        changes = (rows.set_index("seed")["mAP"] - base.set_index("seed")["mAP"]).to_numpy()
        ends = t_interval(changes)
    else:
        one, other = (
            read_queries(Path(str(each["run"].iat[0])))[protocol, stream] for each in (rows, base)
        )
        both = one.join(other, how="inner", rsuffix="_base")
        changes = (both["ap"] - both["ap_base"]).to_numpy()
        ends = interval(changes, both["pid"])
    return [100 * value for value in (float(changes.mean()), *ends)]


def draw_sweep(found: pd.DataFrame, names: Mapping[str, str], path: Path) -> None:
    """Draw mAP of the stream that sees most against multiply-adds, or by combination where all
    cost the same."""
    from deskpro.stages.reporting import figures
    from deskpro.stages.reporting.results import widest

    stream = widest([str(name) for name in found["stream"]])
    rows = found[found["stream"] == stream].to_dict("records")
    seeds, queries = rows[0]["seeds"], rows[0]["queries"]
    what = f"{rows[0]['protocol']} (n = {queries} queries)"
    what += f", mean ± standard deviation of {seeds} seeds" * (seeds > 1)
    if found["macs"].nunique() > 1:
        points = [
            figures.Point(names[row["variant"]], row["macs"] / 1e6, row["mAP"], row["mAP_sd"])
            for row in rows
        ]
        title, label = f"mAP of {stream} against multiply-adds, {what}", "million multiply-adds"
        chart = figures.scatter(points, title, f"{label} a sample", stream)
    else:
        ends = ((row["mAP"] - row["mAP_sd"], row["mAP"] + row["mAP_sd"]) for row in rows)
        drawn = [
            figures.Interval("", names[row["variant"]], stream, row["mAP"], low, high)
            for row, (low, high) in zip(rows, ends, strict=True)
        ]
        chart = figures.intervals(drawn, f"mAP of {stream}, {what}")
    figures.write_figure(chart, path)
