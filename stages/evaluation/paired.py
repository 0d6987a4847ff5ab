"""Evaluated runs side by side: what they share, and the paired test of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deskpro.stages.base.errors import InputError
from deskpro.stages.evaluation.image_digests import evaluate_again
from deskpro.stages.metrics.intervals import percentiles, resampled_means, sign_flip_test
from deskpro.stages.metrics.ranking import MEAN_OF
from deskpro.stages.reporting import record, results
from deskpro.stages.reporting.record import Run

LEVEL = 0.05
"""Of p, adjusted for the number of differences, below which a run is called better or worse."""


def open_run(folder: Path, name: str, *, anyway: bool) -> Run:
    """An evaluated run; anyway: also of another student than the folder's."""
    report = record.read_metrics(folder, anyway=anyway)
    return Run(name, folder, report, read_queries(folder))


def read_queries(folder: Path) -> dict[tuple[str, str], pd.DataFrame]:
    """pid, ap and rank1 of an evaluated run's queries, by protocol and stream (see `Run`)."""
    queries = record.read_table(folder / "queries.csv")
    if queries is None:
        raise InputError(
            f"{folder / 'queries.csv'}: missing, or cannot be read",
            command=evaluate_again(folder),
        )
    return {
        (str(protocol), str(stream)): part.groupby("sample_id", sort=False).agg(
            {"pid": "first", "ap": "mean", "rank1": "mean"}
        )
        for (protocol, stream), part in queries.groupby(["protocol", "stream"], sort=False)
    }


def gain(folder: Path, first: Path) -> dict[str, Any]:
    """The paired difference in mAP of a run from another one, as `compare` shows it.

    It is of the first protocol and the widest stream that both have: protocol, stream, queries,
    identities, difference with its ends, and p.

    Raises:
        InputError: one has no evaluation, or their data or protocols differ.
    """
    runs = [open_run(path, path.resolve().name, anyway=False) for path in (first, folder)]
    shared = [pair for pair in runs[1].queries if common(runs, *pair)]
    # A teacher and a student rank other queries: those that have a face of its kind.
    differing = differences(*runs, of_queries=False)
    if differing or not shared:
        why = "; ".join(differing) or "no queries in common"
        raise InputError(f"they cannot be compared: {why}")
    protocol = shared[0][0]
    stream = results.widest(stream for name, stream in shared if name == protocol)
    return compared(runs, protocol, stream)[1]


def differences(one: Run, other: Run, *, of_queries: bool = True) -> list[str]:
    """How protocols and data of two runs differ; of_queries: also which queries are ranked."""
    data, theirs = one.report["data"], other.report["data"]
    lines = [
        f"{what} is {data.get(what)} and {theirs.get(what)}"
        for what in ("dataset", "unit", "queries", "gallery")
        if data.get(what) != theirs.get(what)
    ]
    digests, others = data["digests"], theirs["digests"]
    changed = [kind for kind in digests if others.get(kind, digests[kind]) != digests[kind]]
    if changed and not lines:
        lines.append(f"{', '.join(changed)} differ")
    for (protocol, stream), queries in one.queries.items() if of_queries else ():
        found = other.queries.get((protocol, stream), queries)
        if {*found.index} != {*queries.index}:
            lines.append(f"evaluated queries differ ({protocol}, {stream})")
            break
    rules, their_rules = (
        {name: part["rule"] for name, part in run.report["protocols"].items()}
        for run in (one, other)
    )
    names = sorted({name for name, _ in rules.items() ^ their_rules.items()})
    if names:
        lines.append(f"protocols {', '.join(names)} differ")
    return [f"{one.name} and {other.name}: {line}" for line in lines]


def common(runs: Sequence[Run], protocol: str, stream: str) -> list[str]:
    """The queries that all runs have under a protocol and stream, in the order of the first."""
    tables = [run.queries.get((protocol, stream)) for run in runs]
    first, *others = [list[str]() if table is None else [*table.index] for table in tables]
    shared = set(first).intersection(*others)
    return [query for query in first if query in shared]


def compared(runs: Sequence[Run], protocol: str, stream: str) -> list[dict[str, object]]:
    """A row per measure and run; values are shares in 0..1."""
    parts, shared = [run.queries[protocol, stream] for run in runs], common(runs, protocol, stream)
    rows, pids = [], parts[0].loc[shared, "pid"].to_numpy()
    for measure, column in MEAN_OF.items():
        values = np.stack([part.loc[shared, column].to_numpy() for part in parts], 1)
        means = resampled_means(values, pids)  # the same resamples for every run
        for i, run in enumerate(runs):
            low, high = percentiles(means[:, i])
            row: dict[str, object] = {
                "protocol": protocol, "stream": stream, "measure": measure, "run": run.name,
                "queries": len(shared), "identities": len({*pids}),
                "value": values[:, i].mean(), "low": low, "high": high,
            }  # fmt: skip
            if i:
                ends = percentiles(means[:, i] - means[:, 0])
                paired = values[:, i] - values[:, 0]
                row |= {"difference": paired.mean(), "difference_low": ends[0],
                        "difference_high": ends[1], "p": sign_flip_test(paired, pids)}  # fmt: skip
            rows.append(row)
    return rows
