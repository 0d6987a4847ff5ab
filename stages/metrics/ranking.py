"""Ranks of the positives, and CMC, mAP and mINP of them: exact, deterministic, in blocks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from deskpro.stages.base.names import Name
from deskpro.stages.metrics.protocols import Codes, Protocol

Distances = Callable[[slice], np.ndarray]
"""Some queries → their distances to the whole gallery, float [rows, G]."""

BLOCK = 256 * 2**20
"""Bytes of distances at a time, at least one query's."""

_COLUMNS: dict[str, Any] = {
    "sample_id": object,
    "draw": int,
    "ap": float,
    "inp": float,
    "first": int,
    "positives": int,
}


@dataclass(frozen=True)
class Ranking:
    """One row per query that counts, in query order; of each draw, where galleries are drawn."""

    queries: pd.DataFrame
    """Columns sample_id, draw, ap (average precision), inp (inverse negative penalty), first (rank
    of the first positive, from 1), positives."""
    skipped: int
    """Queries without a positive in their gallery; they count nowhere."""
    lists: pd.DataFrame
    """The nearest gallery images of each query in the first draw, on request: query, rank,
    sample_id, distance, positive."""

    @property
    def mAP(self) -> float:
        """Mean average precision, 0..1; nan where no query counts."""
        return float(self.queries["ap"].mean())

    @property
    def mINP(self) -> float:
        """Mean inverse negative penalty (Ye et al., TPAMI 2021), 0..1."""
        return float(self.queries["inp"].mean())

    def cmc(self, ranks: int) -> np.ndarray:
        """Share of queries whose first positive is at rank 1..ranks: float64 [ranks]."""
        first = self.queries["first"].to_numpy()
        return (first[:, None] <= np.arange(1, ranks + 1)).mean(0)

    def by_draw(self) -> pd.DataFrame:
        """A row per draw: ap (its mAP) and rank1."""
        rank1 = self.queries["first"].eq(1)
        return self.queries.assign(rank1=rank1).groupby("draw")[["ap", "rank1"]].mean()


class _Task(NamedTuple):
    """A query and the gallery images of its identity, by position in the gallery of the draw."""

    query: int
    positive: np.ndarray
    junk: np.ndarray


def rank_gallery(
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    distances: Distances,
    protocol: Protocol,
    *,
    block: int | None = None,
    seed: int = 0,
    nearest: int = 0,
) -> Ranking:
    """Rank the gallery for every query under a protocol.

    query, gallery: tables with sample_id, pid, camid, and what the protocol needs. `block` queries
    are ranked at a time, as many as `BLOCK` allows where not given; of the same distances the
    result doesn't depend on it. `seed`: of drawn galleries. `nearest`: how many of each query's
    nearest are listed.

    Equal distances are ordered by gallery position. The rank of a positive is one plus the number
    of images before it: that is counted, no order of the gallery is made.
    """
    draws = [_tasks(query, gallery, protocol, rows) for rows in _drawn(gallery, protocol, seed)]
    size = block or max(1, BLOCK // (4 * max(len(gallery), 1)))
    found: dict[tuple[int, int], np.ndarray] = {}
    lists: list[list[Any]] = []
    queries = np.flatnonzero(protocol.query_mask(query))
    with ThreadPoolExecutor() as pool:  # numpy compares outside the GIL
        for part in _runs(queries, size):
            rows = distances(part)
            if np.isnan(rows).any():  # it would compare as nearer than everything
                raise ValueError("a distance is not a number")
            for draw, (members, tasks) in enumerate(draws):
                near = rows if members is None else rows[:, members]
                here = [tasks[q] for q in range(part.start, part.stop) if q in tasks]
                results = pool.map(
                    positive_ranks,
                    (near[task.query - part.start] for task in here),
                    (task.positive for task in here),
                    (task.junk for task in here),
                )
                for task, result in zip(here, results, strict=True):
                    found[draw, task.query] = result
                if nearest and draw == 0:
                    images = gallery["sample_id"].to_numpy()
                    images = images if members is None else images[members]
                    for task in here:
                        listed = _nearest(task, near[task.query - part.start], images, nearest)
                        lists.append([query["sample_id"].iat[task.query], *listed])
            del rows, near  # before the next block is made
    names = query["sample_id"].to_numpy()
    return Ranking(
        pd.DataFrame(
            [
                {"sample_id": names[q], "draw": draw} | _numbers(ranks, protocol)
                for (draw, q), ranks in sorted(found.items())
            ],
            columns=[*_COLUMNS],
        ).astype(_COLUMNS),
        len(queries) - len({q for _, q in found}),
        _listed(lists),
    )


def has_positive(query: pd.DataFrame, gallery: pd.DataFrame, protocol: Protocol) -> bool:
    """Whether any query has a positive under a protocol."""
    return bool(_tasks(query, gallery, protocol, np.flatnonzero(protocol.gallery_mask(gallery)))[1])


def positive_ranks(
    distances: np.ndarray, positive: np.ndarray, junk: np.ndarray | None = None
) -> np.ndarray:
    """The ranks (from 1) of the positives, ascending: int64 [P].

    distances: float [G]; positive, junk: positions in 0..G−1, int64 [P] and [J]. Junk has no rank.
    """
    positive = np.sort(positive)
    at = positive[np.argsort(distances[positive], kind="stable")]
    wanted = distances[at]
    if len(at) > np.log2(len(distances)) / 2:  # then one sort of the values is quicker, measured
        ordered = np.sort(distances)
        before = np.searchsorted(ordered, wanted, "left")
        tied = np.searchsorted(ordered, wanted, "right") - before > 1
    else:
        before = np.array([np.count_nonzero(distances < each) for each in wanted], np.int64)
        tied = np.ones(len(at), bool)
    for i in np.flatnonzero(tied):
        before[i] += np.count_nonzero(distances[: at[i]] == wanted[i])
    if junk is not None and len(junk):
        theirs = distances[junk]
        nearer = theirs[None, :] < wanted[:, None]
        as_near = (theirs[None, :] == wanted[:, None]) & (junk[None, :] < at[:, None])
        before -= (nearer | as_near).sum(1)
    return before + 1


def _numbers(ranks: np.ndarray, protocol: Protocol) -> dict[str, Any]:
    """What is read off the ranks of a query's positives, ascending."""
    hits = np.arange(1, len(ranks) + 1)
    precision = hits / ranks
    if protocol.trapezoidal:
        # Just before a hit; before the first image precision counts as 1.
        earlier = np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)
        precision = (precision + earlier) / 2
    return {
        "ap": precision.mean(),
        "inp": len(ranks) / ranks[-1],
        "first": ranks[0],
        "positives": len(ranks),
    }


def _tasks(
    query: pd.DataFrame, gallery: pd.DataFrame, protocol: Protocol, rows: np.ndarray | None
) -> tuple[np.ndarray | None, dict[int, _Task]]:
    """The gallery rows of a draw, and by query position each query with a positive among them."""
    if rows is not None:
        gallery = gallery.iloc[rows]
    query_codes, gallery_codes = _codes(query, gallery)
    members = gallery.groupby("pid", sort=False).indices
    pids = query["pid"].tolist()
    tasks = {}
    for q in np.flatnonzero(protocol.query_mask(query)):
        same = np.asarray(members.get(pids[q], ()), np.int64)
        junk = protocol.junk(
            {name: codes[q : q + 1] for name, codes in query_codes.items()},
            {name: codes[same] for name, codes in gallery_codes.items()},
        )
        if not junk.all():
            tasks[int(q)] = _Task(int(q), same[~junk], same[junk])
    return rows, tasks


def _codes(query: pd.DataFrame, gallery: pd.DataFrame) -> tuple[Codes, Codes]:
    """The facts of names as int64 codes that both tables share; equal where the values are."""
    tables: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    for name in Name._fields:
        if name in query and name in gallery:
            values = pd.concat([query[name], gallery[name]])
            codes = pd.factorize(values, use_na_sentinel=False)[0]
            tables[0][name], tables[1][name] = codes[: len(query)], codes[len(query) :]
    return tables


def _drawn(gallery: pd.DataFrame, protocol: Protocol, seed: int) -> Iterator[np.ndarray | None]:
    """The gallery of each draw, as positions; None for all of it.

    A draw takes one image of every identity, by a number that comes from (seed, draw, pid): who
    else is in the gallery changes nothing.
    """
    rows = np.flatnonzero(protocol.gallery_mask(gallery))
    if protocol.draws == 1:
        yield None if len(rows) == len(gallery) else rows
        return
    members = gallery.iloc[rows].groupby("pid").indices
    for draw in range(protocol.draws):
        chosen = []
        for pid, own in members.items():
            random = np.random.default_rng([seed, draw, zlib.crc32(str(pid).encode())])
            chosen.append(rows[np.asarray(own)[random.integers(len(own))]])
        yield np.sort(np.asarray(chosen, np.int64))


def _runs(queries: np.ndarray, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that together cover the queries."""
    start = 0
    while start < len(queries):
        first = int(queries[start])
        stop = int(np.searchsorted(queries, first + size))
        yield slice(first, int(queries[stop - 1]) + 1)
        start = stop


def _nearest(
    task: _Task, row: np.ndarray, names: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A query's nearest images without the junk: names, distances, whether positive."""
    wide = min(count + len(task.junk), len(row))
    near = np.flatnonzero(row <= np.partition(row, wide - 1)[wide - 1])
    near = near[~np.isin(near, task.junk)]
    near = near[np.argsort(row[near], kind="stable")][:count]
    return names[near], row[near], np.isin(near, task.positive)


def _listed(lists: list[list[Any]]) -> pd.DataFrame:
    columns = ["query", "rank", "sample_id", "distance", "positive"]
    if not lists:
        return pd.DataFrame(columns=columns)
    queries, names, distances, positive = zip(*lists, strict=True)
    lengths = [*map(len, names)]
    values = [
        np.repeat(np.asarray(queries, object), lengths),
        np.concatenate([np.arange(1, length + 1) for length in lengths]),
        *(np.concatenate(each) for each in (names, distances, positive)),
    ]
    return pd.DataFrame(dict(zip(columns, values, strict=True)))
