"""What is saved of an evaluation: numbers with their intervals, and tables for other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deskpro.cache.files import write_aside
from deskpro.stages.metrics.intervals import interval
from deskpro.stages.metrics.protocols import Protocol
from deskpro.stages.metrics.ranking import MEAN_OF, Ranking
from deskpro.stages.reporting import figures, results


def protocol_numbers(
    protocol: Protocol,
    of_stream: Mapping[str, Ranking],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    faces: Sequence[str],
    ranks: Sequence[int],
) -> dict[str, Any]:
    """What is saved of a protocol; shares in 0..1.

    faces: columns of the face images that the network sees, none or one; ranks: of the CMC, that
    are named.
    """
    widest = of_stream[results.widest(of_stream)]
    return {
        "rule": protocol.rule,
        "draws": protocol.draws,
        "queries": int(widest.queries["sample_id"].nunique()),
        "skipped": widest.skipped,
        "gallery": int(protocol.gallery_mask(gallery).sum()),
        "streams": {
            stream: _of_ranking(ranking, query, faces, protocol.draws, ranks)
            for stream, ranking in of_stream.items()
        },
    }


def ranking_numbers(ranking: Ranking, query: pd.DataFrame, wanted: Sequence[int]) -> dict[str, Any]:
    """What is saved of a ranking; wanted: ranks of the CMC that are named."""
    cmc, queries = ranking.cmc(max(*wanted, 20)), _by_query(ranking)
    identities = query.set_index("sample_id").loc[queries.index, "pid"].to_numpy()
    return {
        "queries": len(queries),
        "identities": len({*identities}),
        "mAP": ranking.mAP,
        "mINP": ranking.mINP,
        **{f"rank{r}": float(cmc[r - 1]) for r in wanted},
        "cmc": cmc.tolist(),
        "interval": intervals(queries, identities),
    }


def intervals(queries: pd.DataFrame, pids: np.ndarray) -> dict[str, list[float]]:
    """Of mAP and rank1 of queries, over their people; queries: with ap and rank1."""
    return {name: interval(queries[each].to_numpy(), pids) for name, each in MEAN_OF.items()}


def _by_query(ranking: Ranking) -> pd.DataFrame:
    """ap and rank1 by sample_id: a query counts once, however many galleries were drawn."""
    return ranking.queries.groupby("sample_id", sort=False)[["ap", "rank1"]].mean()


def _of_ranking(
    ranking: Ranking, query: pd.DataFrame, faces: Sequence[str], draws: int, wanted: Sequence[int]
) -> dict[str, Any]:
    numbers, queries = ranking_numbers(ranking, query, wanted), _by_query(ranking)
    if draws > 1:
        spread = ranking.by_draw().std()
        numbers["sd"] = {name: float(spread[column]) for name, column in MEAN_OF.items()}
    for face in faces:
        missing = set(query.loc[query[face].isna(), "sample_id"])
        lacks = queries.index.isin(missing)
        for key, part in (("with face", queries[~lacks]), ("without face", queries[lacks])):
            means = part.mean()
            numbers[key] = {"queries": len(part)} | {
                name: float(means[column]) if len(part) else None
                for name, column in MEAN_OF.items()
            }
    return numbers


def write_scores(
    report: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Ranking]],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    faces: Sequence[str],
    metrics: Path,
) -> None:
    """The report as JSON in `metrics`, and beside it: metrics.csv, a row per protocol and stream;
    queries.csv, a row per protocol, stream and query; breakdown.csv, a row per identity and camera;
    ranked.csv, the nearest images of each query by the first protocol and its widest stream;
    cmc.png and cmc.svg. The JSON, by which others know that there is an evaluation, is written
    last."""
    metrics.unlink(missing_ok=True)  # no older numbers beside newer files
    first = next(iter(results.merged(report["protocols"]).items()))
    figures.write_figure(results.cmc_figure(*first), metrics.with_name("cmc"))
    queries = _queries(scores, query, faces)
    tables = {
        "metrics.csv": _flat(report),
        "queries.csv": queries,
        "breakdown.csv": _breakdown(queries),
        "ranked.csv": _lists(scores, gallery),
    }
    for name, rows in tables.items():
        with write_aside(metrics.with_name(name)) as aside:
            rows.to_csv(aside, index=False)
    with write_aside(metrics) as aside:
        aside.write_text(json.dumps(report, indent=1) + "\n")


def _flat(report: Mapping[str, Any]) -> pd.DataFrame:
    rows = []
    for name, protocol in report["protocols"].items():
        for stream, numbers in protocol["streams"].items():
            row = {"protocol": name, "stream": stream}
            row |= {key: value for key, value in numbers.items() if isinstance(value, int | float)}
            for key, (low, high) in numbers["interval"].items():
                row |= {f"{key}_low": low, f"{key}_high": high}
            rows.append(row)
    return pd.DataFrame(rows)


def _queries(
    scores: Mapping[str, Mapping[str, Ranking]], query: pd.DataFrame, faces: Sequence[str]
) -> pd.DataFrame:
    who = query.set_index("sample_id")[["pid", "camid", "clothes"]]
    for face in faces:
        who["face"] = query.set_index("sample_id")[face].notna()
    parts = [
        ranking.queries.join(who, on="sample_id").assign(protocol=name, stream=stream)
        for name, of_stream in scores.items()
        for stream, ranking in of_stream.items()
    ]
    columns = ["protocol", "stream", "sample_id", *who.columns]
    rows = pd.concat(parts)[[*columns, "draw", "ap", "inp", "first", "rank1", "positives"]]
    place = rows.groupby(["protocol", "stream"], sort=False).ngroup()
    rows = rows.assign(place=place).sort_values(["place", "draw", "sample_id"])
    return rows.drop(columns="place")


def _breakdown(queries: pd.DataFrame) -> pd.DataFrame:
    """A row per identity and per camera of the queries."""
    parts = []
    for by in ("pid", "camid"):
        part = queries.groupby(["protocol", "stream", by], sort=False).agg(
            queries=("sample_id", "nunique"), mAP=("ap", "mean"), rank1=("rank1", "mean")
        )
        part = part.reset_index().rename(columns={by: "value"})
        part.insert(2, "by", by)
        parts.append(part)
    return pd.concat(parts)


def _lists(scores: Mapping[str, Mapping[str, Ranking]], gallery: pd.DataFrame) -> pd.DataFrame:
    of_stream = next(iter(scores.values()))  # of the first protocol
    ranking = of_stream[results.widest(of_stream)]
    who = gallery.set_index("sample_id")[["pid", "camid", "clothes"]]
    listed = ranking.lists.join(who, on="sample_id").sort_values("query", kind="stable")
    listed["rank"] = [f"{rank:g}" for rank in listed["rank"]]  # 2.5 where two are equally near
    distances = [name for name in listed if str(name).startswith("distance")]
    return listed[["query", "rank", "sample_id", *who.columns, *distances, "positive"]]
