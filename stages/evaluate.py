"""Evaluate a student (or a teacher): descriptors of query and gallery, mAP and CMC per stream."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stages import device as devices
from stages.data.check import check_data
from stages.engine.descriptors import Descriptors, describe_pictures, open_describer
from stages.errors import InputError
from stages.files import sha256, write_aside
from stages.metrics.protocols import PROTOCOLS
from stages.metrics.ranking import Ranking, rank
from stages.options import Options
from stages.progress import table


@dataclass(frozen=True)
class Inputs:
    """network: weights; memo: file that remembers which pictures were checked; kind: student, or
    teacher, which is then shown the HR faces (a published file may hold both)."""

    network: Path
    memo: Path
    kind: str


@dataclass(frozen=True)
class Outputs:
    """metrics: JSON; table: the same as CSV; queries: CSV, a row per stream and query; cmc: PNG."""

    metrics: Path
    table: Path
    queries: Path
    cmc: Path


def run(options: Options, inputs: Inputs, outputs: Outputs) -> dict[str, object]:
    """Rank the gallery for every query, for each stream; returns the facts for the summary."""
    device = devices.pick(options.device)
    data, settings = options.data, options.eval
    describer = open_describer(inputs.network, inputs.kind, data.face_size, data.body_size, device)
    checked = check_data(
        options.test_root,
        options.data_test or options.data_train,
        splits=("query", "gallery"),
        test_needs=describer.needs,
        training=False,
        memo=inputs.memo,
    ).require()
    query, gallery = (
        describe_pictures(
            describer,
            checked.split(split),
            flip=settings.flip,
            batch=settings.batch,
            workers=data.workers,
            device=device,
        )
        for split in ("query", "gallery")
    )
    protocol = PROTOCOLS["market"]
    streams = dict(describer.heads)
    if len(streams) > 1:
        streams["all"] = slice(None)
    rankings = {
        stream: rank(query.table, gallery.table, _distances(query, gallery, part), protocol)
        for stream, part in streams.items()
    }

    if all(ranking.queries.empty for ranking in rankings.values()):
        raise InputError(
            f"{options.test_root}: no query has a positive in the gallery under the rule "
            f"'{protocol.rule}'. Check pids and cameras: deskpro check-data"
        )
    faces = [picture for stream, picture in describer.kinds.items() if stream == "face"]
    kind = describer.description.kind
    report: dict[str, Any] = {
        "protocol": {"name": "market", "rule": protocol.rule},
        "network": {
            "file": inputs.network.name,
            "sha256": sha256(inputs.network),
            "kind": kind,
        },
        "data": {
            "root": str(options.test_root),
            "queries": len(query.table),
            "gallery": len(gallery.table),
            "identities": int(query.table["pid"].nunique()),
            "skipped queries": next(iter(rankings.values())).skipped,
            "without face": {
                name: int(part.table[face].isna().sum())
                for name, part in (("query", query), ("gallery", gallery))
                for face in faces
            },
        },
        "flip": options.eval.flip,
        "streams": {name: _numbers(r, options.eval.ranks) for name, r in rankings.items()},
    }
    _write(report, rankings, outputs)
    columns = ["mAP", "mINP", *(f"rank{r}" for r in options.eval.ranks)]
    table(
        f"{kind}: {len(query.table)} queries, {len(gallery.table)} gallery pictures (%)",
        ["stream", *columns],
        [
            [name, *(f"{100 * report['streams'][name][column]:.1f}" for column in columns)]
            for name in streams
        ],
    )
    return {
        "protocol": protocol.rule,
        "without face": "  ".join(f"{k} {v}" for k, v in report["data"]["without face"].items())
        or "no face stream",
        "skipped": f"{report['data']['skipped queries']} queries without a positive",
        "metrics": f"{outputs.metrics}, {outputs.table.name}, {outputs.cmc.name}",
    }


def _distances(query: Descriptors, gallery: Descriptors, heads: slice) -> Any:
    """1 − dot product of the concatenated features, a block of queries at a time."""
    q, g = (part.features[:, heads].flatten(1) for part in (query, gallery))

    def block(rows: slice) -> np.ndarray:
        return 1 - (q[rows] @ g.T).numpy()

    return block


def _numbers(ranking: Ranking, ranks: tuple[int, ...]) -> dict[str, Any]:
    """What is saved of a ranking; shares in 0..1."""
    cmc = ranking.cmc(max(*ranks, 20))
    return {
        "mAP": ranking.mAP,
        "mINP": ranking.mINP,
        **{f"rank{r}": float(cmc[r - 1]) for r in ranks},
        "cmc": cmc.tolist(),
    }


def _write(report: dict[str, Any], rankings: dict[str, Ranking], outputs: Outputs) -> None:
    """All files; the metrics, by which others know that there is an evaluation, last."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, numbers in report["streams"].items():
        cmc = 100 * np.asarray(numbers["cmc"])
        axes.plot(
            range(1, len(cmc) + 1), cmc, marker=".", label=f"{name}  mAP {numbers['mAP']:.1%}"
        )
    axes.set(xlabel="rank", ylabel="queries matched (%)", ylim=(0, 100), title="CMC, Market rule")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    with write_aside(outputs.cmc) as aside:
        figure.savefig(aside, dpi=120)
    flat = [
        {"stream": name} | {k: v for k, v in numbers.items() if k != "cmc"}
        for name, numbers in report["streams"].items()
    ]
    with write_aside(outputs.table) as aside:
        pd.DataFrame(flat).to_csv(aside, index=False)
    queries = [ranking.queries.assign(stream=name) for name, ranking in rankings.items()]
    with write_aside(outputs.queries) as aside:
        pd.concat(queries).to_csv(aside, index=False)
    with write_aside(outputs.metrics) as aside:
        aside.write_text(json.dumps(report, indent=1) + "\n")
