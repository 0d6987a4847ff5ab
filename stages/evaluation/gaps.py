"""Reassociation after a gap of time: how well people are found again in images that were taken at
least so long before or after, where times are known.

At each gap the images of anybody that were taken sooner are removed from a query's gallery, like
those of its camera. Then fewer queries have a positive, and a query has fewer images to be mistaken
for, so that such rows can't be compared. Therefore each stands twice: as it is (what a search in
all that is so far away finds), and over the queries that the longest gap scores, among the images
of others that the longest gap leaves: there the gap of their own images is all that changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from deskpro.stages.base.progress import log, table
from deskpro.stages.evaluation.measures import Measure
from deskpro.stages.evaluation.scores import intervals
from deskpro.stages.metrics.intervals import interval
from deskpro.stages.metrics.protocols import Protocol
from deskpro.stages.metrics.ranking import Distances, random_order, rank_gallery, tasks_of
from deskpro.stages.reporting import gap_rows

GAPS = {
    "none": 0,
    "1 min": 60,
    "10 min": 600,
    "1 h": 3_600,
    "1 day": 86_400,
    "1 week": 7 * 86_400,
    "30 days": 30 * 86_400,
}
"""Name → seconds, rising."""
LEAST = 10
"""Identities of a row, each with at least one query. Of normal means the percentile interval over
ten identities covers 90 % in the place of 95, over five 83 %."""


def times_unknown(query: pd.DataFrame, gallery: pd.DataFrame) -> str | None:
    """Why there are no gaps of time; empty where no time is known, None where all are."""
    images = pd.concat([query, gallery])
    unknown = images["time"].isna()
    if not unknown.any():
        return None
    example = images.loc[unknown, "sample_id"].iloc[0]
    why = f"times are not known of {unknown.sum()} of {len(images)} images, {example} for one"
    return "" if unknown.all() else why


def gap_numbers(
    query: pd.DataFrame, gallery: pd.DataFrame, measure: Measure, protocol: Protocol
) -> dict[str, Any]:
    """`gaps` of a stream and a protocol in metrics.json.

    They are `rows` of the gaps at which at least `LEAST` identities have a query with a positive,
    and of the others how `few` have; shares in 0..1; or why there are none, `refused`. The queries
    that a gap scores are among those of each shorter one.
    """
    if protocol.draws > 1:
        return {"refused": "its galleries are drawn"}
    shown, few, scored = gallery[protocol.gallery_mask(gallery)], dict[str, Any](), query
    gaps = list[str]()
    for name, seconds in GAPS.items():
        tasks = tasks_of(query, shown, replace(protocol, gap=seconds))
        found = query.iloc[[*tasks]]
        if found["pid"].nunique() >= LEAST:
            gaps, scored = [*gaps, name], found.reset_index(drop=True)
        else:
            few[name] = {"queries": len(found), "identities": found["pid"].nunique()}
    if not gaps:
        least = few["none"]["identities"]
        return {"refused": f"{least} identities have a positive, {LEAST} are needed"}
    queries, most = int(protocol.query_mask(query).sum()), GAPS[gaps[-1]]
    rules = {name: replace(protocol, gap=GAPS[name]) for name in gaps}
    own = _by_query(
        query, gallery, measure, [replace(r, gap_of_others=r.gap) for r in rules.values()]
    )
    same = _by_query(
        scored, gallery, measure, [replace(r, gap_of_others=most) for r in rules.values()]
    )
    rows = []
    for name, mine, shared in zip(gaps, own, same, strict=True):
        change = (shared["ap"] - same[0]["ap"]).to_numpy()
        numbers = _numbers(shared) | {"difference": float(change.mean())}
        numbers["interval"]["difference"] = interval(change, shared["pid"].to_numpy())
        about = {"gap": name, "seconds": GAPS[name], "skipped": queries - len(mine)}
        rows.append(about | _numbers(mine) | {"same": numbers})
    return {"rows": rows, "few": few}


def _by_query(
    query: pd.DataFrame, gallery: pd.DataFrame, measure: Measure, rules: Sequence[Protocol]
) -> list[pd.DataFrame]:
    """By each rule of each query that it scores: ap, rank1, pid, ap by chance, and how many gallery
    images are left."""
    distances, found = _kept(measure(query, gallery)), []
    pids = query.set_index("sample_id")["pid"]
    for rule in rules:
        rows = rank_gallery(query, gallery, distances, rule).queries.set_index("sample_id")
        equal = random_order(query, gallery, rule).set_index("sample_id")
        rows = rows[["ap", "rank1"]].assign(pid=pids, chance=equal["ap"], gallery=equal["images"])
        found.append(rows)
    return found


def _kept(distances: Distances) -> Distances:
    """The last block is kept: where all queries are one, it is computed once for all rules."""
    kept = dict[tuple[int, int], np.ndarray]()

    def block(rows: slice) -> np.ndarray:
        key = rows.start, rows.stop
        if key not in kept:
            kept.clear()
            kept[key] = distances(rows)
        return kept[key]

    return block


def _numbers(queries: pd.DataFrame) -> dict[str, Any]:
    """The figures of some queries."""
    columns = {"gallery": "gallery", "ap": "mAP", "rank1": "rank1", "chance": "chance"}
    means = {name: float(queries[column].mean()) for column, name in columns.items()}
    pids = queries["pid"].to_numpy()
    people = {"queries": len(queries), "identities": len({*pids})}
    return people | means | {"interval": intervals(queries, pids)}


def show_gaps(report: Mapping[str, Any]) -> None:
    """Print a table for each protocol's widest stream, or why there is none."""
    for names, stream, gaps in gap_rows.widest_gaps(report["protocols"]):
        if "refused" in gaps:
            log(f"eval: {names}, {stream}: no gaps of time: {gaps['refused']}")
            continue
        title = f"{names}, {stream}: only gallery images at least a gap before or after (%)"
        table(title, gap_rows.COLUMNS, gap_rows.rows(gaps))
        same = gap_rows.same_title(gaps)
        table(f"{names}, {stream}: {same}", gap_rows.SAME_COLUMNS, gap_rows.same_rows(gaps))
        if gaps["few"]:
            few = ", ".join(f"{name} ({n['identities']})" for name, n in gaps["few"].items())
            log(f"eval: {names}, {stream}: fewer than {LEAST} identities have a positive at {few}")
