"""Compare evaluated runs: one table and image, and whether differences are more than chance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deskpro.cache.files import write_aside
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.progress import log, table
from deskpro.stages.metrics.intervals import resampled_means, sign_flip_test

MEASURES = {"mAP": "ap", "rank1": "rank1"}
"""What is compared → its column, by query."""


@dataclass(frozen=True)
class Run:
    """An evaluated run.

    rules: protocol → its rule; data, digests: what was evaluated, and the contents of its images;
    settings: how; queries: by protocol and stream ap and rank1 of every query, by sample_id.
    """

    name: str
    rules: dict[str, str]
    data: dict[str, Any]
    digests: dict[str, str]
    settings: dict[str, Any]
    queries: dict[tuple[str, str], pd.DataFrame]


def run(folders: Sequence[Path], out: Path, *, anyway: bool = False) -> dict[str, object]:
    """Compare every run with the first; writes compare.csv and compare.png into `out`.

    A difference is the mean over queries of the paired difference; its interval is a bootstrap over
    queries (95 %), its p that of random signs, two-sided: they speak of other queries, not of
    another training of the same recipe. Raises InputError where a run has no evaluation, and, but
    for `anyway`, where protocols or data differ; then only the protocols, and of these the queries,
    that all have are compared.
    """
    runs = [_open(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    differing = [line for other in runs[1:] for line in _differences(runs[0], other)]
    if differing and not anyway:
        raise InputError(
            f"these runs can't be compared: {'; '.join(differing)}. Evaluate them alike, or type "
            "--anyway to compare what they have in common"
        )
    for line in differing + [line for other in runs[1:] for line in _settings(runs[0], other)]:
        log(f"compare: {line}")
    rows = pd.DataFrame(
        [
            row
            for protocol, stream in _common(runs)
            for row in _compare(runs, protocol, stream)
        ]
    )  # fmt: skip
    if rows.empty:
        raise InputError("these runs have no protocol, stream and query in common")
    with write_aside(out / "compare.csv") as aside:
        rows.to_csv(aside, index=False)
    _image(rows, out / "compare.png")
    _show(rows)
    return {
        "rules": "; ".join(runs[0].rules[name] for name in rows["protocol"].unique()),
        "written": f"{out / 'compare.csv'}, compare.png",
    }


def _open(folder: Path, name: str) -> Run:
    try:
        report = json.loads((folder / "metrics.json").read_text())
        queries = pd.read_csv(folder / "queries.csv", dtype={"pid": str})
        queries["rank1"] = queries["first"].eq(1).astype(float)
        rules = {name: part["rule"] for name, part in report["protocols"].items()}
        data, digests = report["data"], report["data"]["digests"]
        parts = {
            # A query counts once, however many galleries were drawn.
            (str(protocol), str(stream)): part.groupby("sample_id", sort=False)[
                ["ap", "rank1"]
            ].mean()
            for (protocol, stream), part in queries.groupby(["protocol", "stream"], sort=False)
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder}: no evaluation that can be read here ({type(error).__name__}: {error}). "
            f"Type make eval RUN={folder}"
        ) from None
    settings = {what: report.get(what) for what in ("flip", "face_weight", "rerank")}
    return Run(name, rules, data, digests, settings, parts)


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names where these differ, else their whole paths."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _differences(one: Run, other: Run) -> list[str]:
    lines = []
    pair = f"{one.name} and {other.name}"
    for what in ("dataset", "queries", "gallery"):
        a, b = (run.data.get(what) for run in (one, other))
        if a != b:
            lines.append(f"{pair}: {what} {a} and {b}")
    if not lines:
        kinds = [kind for kind in one.digests if kind in other.digests]
        changed = [kind for kind in kinds if one.digests[kind] != other.digests[kind]]
        if changed:
            lines.append(f"{pair}: other {', '.join(changed)}")
    for protocol, stream in one.queries:
        theirs = other.queries.get((protocol, stream))
        if theirs is not None and {*theirs.index} != {*one.queries[protocol, stream].index}:
            lines.append(f"{pair}: {protocol}, {stream}: other queries are counted")
            break
    every = sorted(one.rules.keys() | other.rules.keys())
    names = [name for name in every if one.rules.get(name) != other.rules.get(name)]
    if names:
        lines.append(f"{pair}: protocols {', '.join(names)} not in both alike")
    return lines


def _settings(one: Run, other: Run) -> list[str]:
    """How the two were evaluated otherwise: that may be what is compared, but is said."""
    return [
        f"{what} is {value} of {one.name}, {other.settings[what]} of {other.name}"
        for what, value in one.settings.items()
        if value != other.settings[what]
    ]


def _common(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The (protocol, stream) that all have, as the first orders them."""
    return [pair for pair in runs[0].queries if all(pair in run.queries for run in runs)]


def _compare(runs: Sequence[Run], protocol: str, stream: str) -> list[dict[str, object]]:
    """A row per run and measure; values are shares in 0..1."""
    parts = [run.queries[protocol, stream] for run in runs]
    shared = parts[0].index
    for part in parts[1:]:
        shared = shared[shared.isin(part.index)]
    if not len(shared):
        return []
    rows = []
    for measure, column in MEASURES.items():
        values = np.stack([part.loc[shared, column].to_numpy() for part in parts], 1)
        means = resampled_means(values)  # the same resamples of queries for every run
        for i, run in enumerate(runs):
            low, high = np.quantile(means[:, i], (0.025, 0.975))
            row: dict[str, object] = {
                "protocol": protocol, "stream": stream, "measure": measure, "run": run.name,
                "queries": len(shared), "value": values[:, i].mean(), "low": low, "high": high,
            }  # fmt: skip
            if i:
                ends = np.quantile(means[:, i] - means[:, 0], (0.025, 0.975))
                apart = values[:, i] - values[:, 0]
                row |= {"difference": apart.mean(), "difference_low": ends[0],
                        "difference_high": ends[1], "p": sign_flip_test(apart)}  # fmt: skip
            rows.append(row)
    return rows


def _show(rows: pd.DataFrame) -> None:
    lines = []
    for row in rows.to_dict("records"):
        apart = ""
        if not pd.isna(row.get("p", np.nan)):
            low, high = 100 * row["difference_low"], 100 * row["difference_high"]
            apart = f"{100 * row['difference']:+.1f} ({low:+.1f} to {high:+.1f}), p {row['p']:.3g}"
        value = f"{100 * row['value']:.1f} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"
        lines.append([row["protocol"], row["stream"], row["measure"], row["run"], value, apart])
    first = rows["run"].iloc[0]
    columns = ["protocol", "stream", "measure", "run", "% (95 % interval)", f"over {first}"]
    table(f"compare: paired over {rows['queries'].max()} queries", columns, lines)


def _image(rows: pd.DataFrame, path: Path) -> None:
    """mAP of every run with its interval, a group of bars per protocol and stream."""
    shown = rows[rows["measure"] == "mAP"]
    groups = [*shown.groupby(["protocol", "stream"], sort=False)]
    names = [*shown["run"].unique()]
    figure = Figure(
        figsize=(max(6, 1.1 * len(groups) * len(names) ** 0.5), 4), layout="constrained"
    )
    axes = figure.subplots()
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        picked: list[Mapping[str, Any]] = [
            part[part["run"] == name].iloc[0].to_dict() for _, part in groups
        ]
        heights = np.array([100 * row["value"] for row in picked])
        ends = np.array(
            [[100 * row["low"] for row in picked], [100 * row["high"] for row in picked]]
        )
        places = np.arange(len(groups)) + (i - (len(names) - 1) / 2) * width
        errors = np.abs(ends - heights)
        axes.bar(places, heights, width, yerr=errors, capsize=3, label=name)
    labels = [f"{stream}\n{protocol}" for (protocol, stream), _ in groups]
    axes.set_xticks(np.arange(len(groups)), labels, fontsize=7)
    axes.set(ylabel="mAP (%), 95 % interval over queries", ylim=(0, None))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend()
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=120)
