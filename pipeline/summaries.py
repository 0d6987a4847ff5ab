"""What the students of a study were worth: means, paired differences, a chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from deskpro.pipeline.studies import Curve
from deskpro.pipeline.tables import REFERENCES
from deskpro.stages.metrics.intervals import holm, interval, paired_t, t_interval


def summarise(
    rows: pd.DataFrame, base_of: Callable[[str], str], same: Collection[tuple[str, str]] = ()
) -> pd.DataFrame:
    """Mean and standard deviation (n−1) over replicates, and the paired difference from a variant.

    Args:
        rows: a row per replicate, variant and stream.
        base_of: variant → the variant from which its difference is counted.
        same: (variant, stream) whose stream is that of the variant's base: a difference of 0 by
            construction, no test.

    Returns:
        A row per variant and stream, in per cent: variant, stream, protocol, queries, replicates,
        mAP, mAP_sd, rank1, rank1_sd, minutes (mean of training), parameters and macs where `rows`
        has them, and of mAP difference, low, high (see `_difference`), p (paired t, adjusted for
        all cells by Holm). An sd of one replicate is nan.
    """
    costs = {name: (name, "first") for name in ("parameters", "macs") if name in rows}
    found = (
        rows.groupby(["variant", "stream"], sort=False)
        .agg(
            protocol=("protocol", "first"),
            queries=("queries", "first"),
            replicates=("replicate", "size"),
            mAP=("mAP", lambda values: 100 * values.mean()),
            mAP_sd=("mAP", lambda values: 100 * values.std()),
            rank1=("rank1", lambda values: 100 * values.mean()),
            rank1_sd=("rank1", lambda values: 100 * values.std()),
            minutes=("minutes", "mean"),
            **costs,
        )
        .reset_index()
    )
    parts = dict([*rows.groupby(["variant", "stream"])])
    cells = [*zip(found["variant"], found["stream"], strict=True)]
    compared = {
        cell: _difference(parts[cell], parts.get((base_of(cell[0]), cell[1])), cell in same)
        for cell in cells
    }
    found[["difference", "low", "high", "p"]] = [compared[cell] for cell in cells]
    found["p"] = holm(found["p"].to_numpy())
    return found


def _difference(rows: pd.DataFrame, base: pd.DataFrame | None, same: bool) -> list[float]:
    """The mean difference of mAP from `base` and its 95 % interval, in per cent, and p: over
    replicates by Student's t; of one replicate the interval is over identities, and there is no p;
    nan where nothing can be paired. The same stream has no interval and no p."""
    variant, protocol = str(rows["variant"].iat[0]), rows["protocol"].iat[0]
    if base is None or variant in REFERENCES or rows.equals(base):
        return [math.nan] * 4
    if {*base["protocol"]} != {protocol}:
        return [math.nan] * 4
    if same:
        return [0.0, math.nan, math.nan, math.nan]
    changes = paired(rows, base)
    if len(changes) == 1:
        ends = _over_identities(rows, base)
        return [100 * value for value in (float(changes.mean()), *ends)] + [math.nan]
    ends = t_interval(changes)
    return [100 * value for value in (float(changes.mean()), *ends)] + [paired_t(changes)]


def paired(rows: pd.DataFrame, base: pd.DataFrame, measure: str = "mAP") -> pd.Series[float]:
    """The difference of each replicate, 0..1."""
    changes = rows.set_index("replicate")[measure] - base.set_index("replicate")[measure]
    return changes.dropna()


def _over_identities(rows: pd.DataFrame, base: pd.DataFrame) -> list[float]:
    """The interval of one replicate's difference; nan where its queries aren't on this machine."""
    from deskpro.stages.evaluation.paired import read_queries

    parts = []
    for each in (rows, base):
        row: dict[Any, Any] = each.iloc[0].to_dict()
        if not row["run"] or not (Path(row["run"]) / "queries.csv").is_file():
            return [math.nan] * 2
        queries = read_queries(Path(row["run"])).get((row["protocol"], row["stream"]))
        if queries is None or abs(queries["ap"].mean() - row["mAP"]) > 1e-5:
            return [math.nan] * 2  # they are of another training
        parts.append(queries)
    both = parts[0].merge(parts[1], left_index=True, right_index=True, suffixes=("", "_base"))
    return interval((both["ap"] - both["ap_base"]).to_numpy(), both["pid"])


def draw_sweep(found: pd.DataFrame, names: Mapping[str, str], path: Path) -> None:
    """Draw mAP of the stream that sees most against multiply-adds, or by combination where all
    cost the same."""
    from deskpro.stages.reporting import figures
    from deskpro.stages.reporting.results import widest

    stream = widest([str(name) for name in found["stream"]])
    rows = found[found["stream"] == stream].to_dict("records")
    seeds, queries = rows[0]["replicates"], rows[0]["queries"]
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


def draw_curves(rows: pd.DataFrame, curve: Curve, path: Path) -> None:
    """Draw mAP of a study's lines against the quantity that it varies, a panel per stream."""
    from deskpro.stages.reporting import curves, figures

    panels: dict[str, dict[str, list[curves.Level]]] = {}
    for (variant, stream), part in rows.groupby(["variant", "stream"], sort=False):
        if variant in curve.places:
            line, at = curve.places[str(variant)]
            mean, ends = 100 * part["mAP"].mean(), t_interval(100 * part["mAP"].to_numpy())
            level = curves.Level(at, float(mean), *ends)
            panels.setdefault(str(stream), {}).setdefault(line, []).append(level)
    facts: dict[Any, Any] = rows.iloc[0].to_dict()
    count, queries = rows["replicate"].nunique(), int(rows["queries"].max())
    title = f"mAP, {facts['protocol']} (n = {queries} queries)"
    title += f", mean and 95 % interval of {count} replicates" * (count > 1)
    figures.write_figure(curves.panels(panels, title, curve.label), path)
