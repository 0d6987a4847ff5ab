"""CMC, mAP and mINP of a gallery ranked for every query: exact, in blocks.

Equal distances have no order. Each number is its expectation over all orders of the images that
are equally near (as in McSherry & Najork, "Computing information retrieval performance measures
efficiently in the presence of tied scores", ECIR 2008), so no number depends on file names.
"""

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
    "first": float,
    "rank1": float,
    "positives": int,
}


@dataclass(frozen=True)
class Ranking:
    """One row per query that counts, in query order; of each draw, where galleries are drawn."""

    queries: pd.DataFrame
    """Columns sample_id, draw, ap (average precision), inp (inverse negative penalty), first (rank
    of the first positive, from 1), rank1 (whether that is 1), positives. Where distances are equal
    all are expectations: first can be 2.5, and rank1 is a probability."""
    skipped: int
    """Queries without a positive in their gallery; they count nowhere."""
    lists: pd.DataFrame
    """The nearest gallery images of each query in the first draw, on request: query, rank,
    sample_id, distance, positive. Images that are equally near have one rank, their mean."""
    first: np.ndarray
    """The `Ties` with the first positives of each row of `queries`: int64 [n, 3]."""

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
        before, size, hits = self.first.T
        missed = np.ones(len(self.first))  # probability that no positive came so far
        shares = []
        for rank in range(ranks):
            place = np.clip(rank - before, 0, size - 1)
            others = np.maximum(size - hits - place, 0) / (size - place)
            missed = np.where(rank < before, 1.0, missed * others)
            shares.append(1 - missed.mean())
        return np.asarray(shares)

    def by_draw(self) -> pd.DataFrame:
        """A row per draw: ap (its mAP) and rank1."""
        return self.queries.groupby("draw")[["ap", "rank1"]].mean()


class Ties(NamedTuple):
    """Groups of equally near images that hold a positive, nearest first: int64 [groups] each."""

    before: np.ndarray
    """Images that are nearer."""
    size: np.ndarray
    """Images in the group."""
    hits: np.ndarray
    """Positives among them."""


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
    nearest are listed, equally near ones in a random order.

    Raises:
        ValueError: a distance is not a number.
    """
    draws = [_tasks(query, gallery, protocol, rows) for rows in _drawn(gallery, protocol, seed)]
    size = block or max(1, BLOCK // (4 * max(len(gallery), 1)))
    found: dict[tuple[int, int], Ties] = {}
    lists: list[list[Any]] = []
    queries, names = np.flatnonzero(protocol.query_mask(query)), query["sample_id"].to_numpy()
    with ThreadPoolExecutor() as pool:  # numpy compares outside the GIL
        for part in _runs(queries, size):
            rows = distances(part)
            if np.isnan(rows).any():  # it would compare as nearer than everything
                raise ValueError("a distance is not a number")
            for draw, (members, tasks) in enumerate(draws):
                near = rows if members is None else rows[:, members]
                here = [tasks[q] for q in range(part.start, part.stop) if q in tasks]
                results = pool.map(
                    tie_groups,
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
                        name, row = names[task.query], near[task.query - part.start]
                        lists.append([name, *_nearest(name, task, row, images, nearest)])
            del rows, near  # before the next block is made
    rows = [
        (names[q], draw, *_numbers(ties, protocol)) for (draw, q), ties in sorted(found.items())
    ]
    return Ranking(
        pd.DataFrame(rows, columns=[*_COLUMNS]).astype(_COLUMNS),
        len(queries) - len({q for _, q in found}),
        _listed(lists),
        np.array([np.stack(ties)[:, 0] for _, ties in sorted(found.items())]).reshape(-1, 3),
    )


def has_positive(query: pd.DataFrame, gallery: pd.DataFrame, protocol: Protocol) -> bool:
    """Whether any query has a positive under a protocol."""
    return bool(_tasks(query, gallery, protocol, np.flatnonzero(protocol.gallery_mask(gallery)))[1])


def tie_groups(distances: np.ndarray, positive: np.ndarray, junk: np.ndarray | None = None) -> Ties:
    """The positives, by groups of equally near images; junk counts nowhere.

    distances: float [G]; positive, junk: positions in 0..G−1, int64 [P] and [J]. Images before a
    group are counted, no order of the gallery is made.
    """
    values, hits = np.unique(distances[positive], return_counts=True)
    if len(values) > np.log2(len(distances)) / 2:  # one sort is quicker, measured
        ordered = np.sort(distances)
        before = np.searchsorted(ordered, values, "left")
        until = np.searchsorted(ordered, values, "right")
    else:
        before = np.array([np.count_nonzero(distances < each) for each in values], np.int64)
        until = np.array([np.count_nonzero(distances <= each) for each in values], np.int64)
    if junk is not None and len(junk):
        theirs = np.sort(distances[junk])
        before = before - np.searchsorted(theirs, values, "left")
        until = until - np.searchsorted(theirs, values, "right")
    return Ties(before, until - before, hits)


def _numbers(ties: Ties, protocol: Protocol) -> tuple[float, float, float, float, int]:
    """Expected ap, inp, first and rank1 over all orders within the groups, and the positives."""
    before, size, hits = ties
    total, earlier = int(hits.sum()), np.cumsum(hits) - hits
    group = np.repeat(np.arange(len(size)), size)
    place = np.arange(len(group)) - np.repeat(np.cumsum(size) - size, size)  # in its group, from 0
    # If a positive is at a place, each other place of the group holds one of the other positives
    # with the same probability.
    others = (hits - 1) / np.maximum(size - 1, 1)
    found, rank = earlier[group] + place * others[group], before[group] + place + 1
    precision = (found + 1) / rank
    if protocol.trapezoidal:
        # Just before a hit; before the first image precision counts as 1.
        precision = (precision + np.where(rank > 1, found / np.maximum(rank - 1, 1), 1.0)) / 2
    ap = float((precision * (hits / size)[group]).sum() / total)
    last = before[-1] + size[-1] - np.arange(size[-1] - hits[-1] + 1)  # its ranks, from the end
    inp = float((_first_place(size[-1], hits[-1]) * (total / last)).sum())
    first = float(before[0] + (size[0] + 1) / (hits[0] + 1))
    return ap, inp, first, float(hits[0] / size[0]) if before[0] == 0 else 0.0, total


def _first_place(size: int, hits: int) -> np.ndarray:
    """Probability that the first of `hits` among `size` places is at 1, 2, …: float64."""
    places = np.arange(size - hits + 1)
    missed = np.cumprod([1.0, *((size - hits - places[:-1]) / (size - places[:-1]))])
    return missed * hits / (size - places)


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
    query: str, task: _Task, row: np.ndarray, names: np.ndarray, count: int
) -> tuple[np.ndarray, ...]:
    """A query's nearest images without the junk: ranks, names, distances, whether positive."""
    wide = min(count + len(task.junk), len(row))
    near = np.flatnonzero(row <= np.partition(row, wide - 1)[wide - 1])
    near = near[~np.isin(near, task.junk)]
    drawn = [zlib.crc32(f"{query}/{name}".encode()) for name in names[near]]  # orders equal ones
    near = near[np.lexsort((drawn, row[near]))]
    _, start, size = np.unique(row[near], return_index=True, return_counts=True)
    ranks = np.repeat(start + (size + 1) / 2, size)[:count]
    near = near[:count]
    return ranks, names[near], row[near], np.isin(near, task.positive)


def _listed(lists: list[list[Any]]) -> pd.DataFrame:
    columns = ["query", "rank", "sample_id", "distance", "positive"]
    if not lists:
        return pd.DataFrame(columns=columns)
    queries, *values = zip(*lists, strict=True)
    lengths = [len(row) for row in values[0]]
    values = [
        np.repeat(np.asarray(queries, object), lengths),
        *(np.concatenate(each) for each in values),
    ]
    return pd.DataFrame(dict(zip(columns, values, strict=True)))
