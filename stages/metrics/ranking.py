"""CMC, mAP and mINP of a gallery ranked for every query: exact, in blocks.

Equal distances have no order. Each number is its expectation over all orders of the images that
are equally near (as in McSherry & Najork, "Computing information retrieval performance measures
efficiently in the presence of tied scores", ECIR 2008), so no number depends on file names.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from deskpro.stages.base.names import Name
from deskpro.stages.metrics.gaps import Near
from deskpro.stages.metrics.nearest import Nearest
from deskpro.stages.metrics.protocols import Codes, Protocol

Rows = slice | np.ndarray
"""Positions in a table."""
Distances = Callable[[slice], np.ndarray]
"""Some queries → their distances to the whole gallery, float [rows, G]."""

BLOCK = 256 * 2**20
"""Bytes of distances at a time, at least one query's."""

TIED = 2**20
"""Places of equally near images that are looked at at a time, at least one query's."""

_NUMBERS = {
    "ap": float,
    "inp": float,
    "first": float,
    "rank1": float,
    "positives": int,
    "before": int,
    "tied": int,
    "hits": int,
}
"""What is computed of a query."""

MEAN_OF = {"mAP": "ap", "rank1": "rank1"}
"""Measure that is reported with an interval → the column of queries that it is the mean of."""


@dataclass(frozen=True)
class Ranking:
    """One row per query that counts, in query order; of each draw, where galleries are drawn."""

    queries: pd.DataFrame
    """Columns sample_id, draw, ap (average precision), inp (inverse negative penalty), first (rank
    of the first positive, from 1), rank1 (whether that is 1), positives. Where distances are equal
    all are expectations: first can be 2.5, and rank1 is a probability. `before` images are nearer
    than the first positive, `tied` are as near as it, and `hits` of these are positives."""
    skipped: int
    """Queries without a positive in their gallery; they count nowhere."""
    lists: pd.DataFrame
    """The nearest gallery images of each query in the first draw, on request: query, rank,
    sample_id, distance, positive. Images that are equally near have one rank, their mean. The
    nearest positive comes last where it is further than all of them."""
    firsts: pd.DataFrame
    """What the first images show that are another person's, in the first draw, on request: query,
    fact, value, and the share of the first images (several, where they are equally near) that are
    wrong and show it. Values that aren't known have no row."""

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
        before, size, hits = self.queries[["before", "tied", "hits"]].to_numpy().T
        missed = np.ones(len(before))  # probability that no positive came so far
        shares = []
        for rank in range(ranks):
            place = np.clip(rank - before, 0, size - 1)
            others = np.maximum(size - hits - place, 0) / (size - place)
            missed = np.where(rank < before, 1.0, missed * others)
            shares.append((1 - missed).mean())
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


class Task(NamedTuple):
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
    nearest: int = 0,
    facts: Sequence[str] = (),
) -> Ranking:
    """Rank the gallery for every query under a protocol.

    query, gallery: tables with sample_id, pid, camid, and what the protocol needs. `block` queries
    are ranked at a time, as many as `BLOCK` allows where not given; of the same distances the
    result doesn't depend on it. `nearest`: how many of each query's nearest are listed, equally
    near ones in a random order. `facts`: columns of the gallery of which it is counted what a wrong
    first image shows.

    Raises:
        ValueError: a distance is not a number, or nearest images or facts are wanted where other
            people's images are removed.
    """
    if protocol.gap_of_others and (nearest or facts):
        raise ValueError("nearest images and facts are not collected under a gap of time")
    draws = [(rows, tasks_of(query, gallery, protocol, rows)) for rows in _drawn(gallery, protocol)]
    size = block or queries_at_once(len(gallery))
    found: dict[tuple[int, int], np.ndarray] = {}
    queries, names = np.flatnonzero(protocol.query_mask(query)), query["sample_id"].to_numpy()
    near_by = Nearest(gallery.iloc[draws[0][0]], nearest, facts)
    soon = Near(query, gallery, protocol.gap_of_others)
    with ThreadPoolExecutor() as pool:  # numpy compares outside the GIL
        for part in _runs(queries, size):
            rows = distances(part)
            if np.isnan(rows).any():  # it would compare as nearer than everything
                raise ValueError("a distance is not a number")
            rows = soon.without_others(rows, part.start)
            for draw, (members, tasks) in enumerate(draws):
                near = rows[:, members]
                here = [tasks[q] for q in range(part.start, part.stop) if q in tasks]
                for task, numbers in _measured(pool, near, part.start, protocol, here):
                    found[draw, task.query] = numbers
                for task in here if draw == 0 and (nearest or facts) else ():
                    row = near[task.query - part.start]
                    near_by.add(names[task.query], row, task.positive, task.junk)
            del rows, near  # before the next block is made
    table = _table(found, names)
    skipped = len(queries) - table["sample_id"].nunique()
    return Ranking(table, skipped, near_by.lists(), near_by.firsts())


def has_positive(query: pd.DataFrame, gallery: pd.DataFrame, protocol: Protocol) -> bool:
    """Whether any query has a positive under a protocol."""
    return bool(tasks_of(query, gallery[protocol.gallery_mask(gallery)], protocol))


def queries_at_once(images: int) -> int:
    """How many queries' distances to so many images fit in `BLOCK`, at least one's."""
    return max(1, BLOCK // (4 * max(images, 1)))


def slices(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that together cover `count`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def clothes_distances(query: pd.DataFrame, gallery: pd.DataFrame) -> Distances:
    """Distances of one who reads clothes perfectly, and nothing else: 0 of the same outfit, else 1.

    float32 [rows, G]; outfits are compared by the column `clothes` of both tables.
    """
    query_outfit, gallery_outfit = query["clothes"].to_numpy(), gallery["clothes"].to_numpy()
    return lambda rows: (query_outfit[rows, None] != gallery_outfit).astype(np.float32)


def random_order(query: pd.DataFrame, gallery: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    """What a random order of the gallery gives each query that counts, in each draw.

    Returns:
        Columns sample_id, images (that it is compared with), ap (its expectation), as of a
        `Ranking` in which all images are equally near.
    """
    soon, names, rows = Near(query, gallery, protocol.gap_of_others), query["sample_id"], []
    for members in _drawn(gallery, protocol):
        images = len(gallery.iloc[members])
        for task in tasks_of(query, gallery, protocol, members).values():
            removed = len(task.junk) + np.count_nonzero(soon.others(task.query, members))
            rows.append((task.query, images - removed, len(task.positive)))
    found = np.array(rows, np.int64).reshape(-1, 3)
    ap = _random_ap(found[:, 1], found[:, 2], trapezoidal=protocol.trapezoidal)
    who = names.iloc[found[:, 0]].to_numpy()
    return pd.DataFrame({"sample_id": who, "images": found[:, 1], "ap": ap})


def _random_ap(images: np.ndarray, positives: np.ndarray, *, trapezoidal: bool) -> np.ndarray:
    """Expected average precision of random orders; positives ≥ 1 among images, int64 [n] each.

    A place k holds a positive with probability p / n, and each place before it then one of the
    others with probability (p − 1) / (n − 1).
    """
    harmonic = np.cumsum(1 / np.arange(1, images.max(initial=1) + 1))[images - 1]
    others = (positives - 1) / np.maximum(images - 1, 1)
    ap = (harmonic + others * (images - harmonic)) / images
    # Just before a hit precision is that of the others' share, at the first place 1.
    return (ap + (1 + others * (images - 1)) / images) / 2 if trapezoidal else ap


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


def _measured(
    pool: ThreadPoolExecutor,
    distances: np.ndarray,
    start: int,
    protocol: Protocol,
    tasks: Sequence[Task],
) -> Iterator[tuple[Task, np.ndarray]]:
    """Each query with its `_NUMBERS`; distances: of the queries from `start` on, [rows, G]."""
    size = max(1, TIED // max(distances.shape[1], 1))
    batches = [tasks[part] for part in slices(len(tasks), size)]
    for batch, numbers in zip(
        batches, pool.map(partial(_measure, distances, start, protocol), batches), strict=True
    ):
        yield from zip(batch, numbers, strict=True)


def _measure(
    distances: np.ndarray, start: int, protocol: Protocol, tasks: Sequence[Task]
) -> np.ndarray:
    """The `_NUMBERS` of some queries: float64 [queries, numbers]."""
    ties = [tie_groups(distances[t.query - start], t.positive, t.junk) for t in tasks]
    before, size, hits = (np.concatenate(each) for each in zip(*ties, strict=True))
    groups = np.array([len(each.size) for each in ties])
    ends = np.cumsum(groups)
    starts, owner = ends - groups, np.repeat(np.arange(len(tasks)), groups)
    total, earlier = np.add.reduceat(hits, starts), np.cumsum(hits) - hits
    earlier -= np.repeat(earlier[starts], groups)

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
    ap = np.bincount(owner[group], precision * (hits / size)[group]) / total

    last = ends - 1
    inp = total / (before + size)[last]
    for i in np.flatnonzero(size[last] > hits[last]):
        inp[i] = total[i] * _inverse_last_rank(
            *(int(each[last[i]]) for each in (before, size, hits))
        )
    before, size, hits = before[starts], size[starts], hits[starts]
    first = before + (size + 1) / (hits + 1)
    rank1 = np.where(before == 0, hits / size, 0.0)
    return np.stack([ap, inp, first, rank1, total, before, size, hits], axis=1)


def _inverse_last_rank(before: int, size: int, hits: int) -> float:
    """Expectation of 1 / (rank of the last of `hits` among `size` images after `before`)."""
    places = np.arange(size - hits + 1)  # from the end
    missed = np.cumprod([1.0, *((size - hits - places[:-1]) / (size - places[:-1]))])
    probability = missed * hits / (size - places)
    return float((probability / (before + size - places)).sum())


def tasks_of(
    query: pd.DataFrame, gallery: pd.DataFrame, protocol: Protocol, rows: Rows = slice(None)
) -> dict[int, Task]:
    """By query position each query with a positive in the gallery, or among some rows of it."""
    gallery = gallery.iloc[rows]
    query_codes, gallery_codes = _codes(query, gallery)
    members = gallery.groupby("pid", sort=False).indices
    pids, soon = query["pid"].tolist(), Near(query, gallery, protocol.gap)
    tasks = {}
    for q in np.flatnonzero(protocol.query_mask(query)):
        same = np.asarray(members.get(pids[q], ()), np.int64)
        junk = protocol.junk(
            {name: codes[q : q + 1] for name, codes in query_codes.items()},
            {name: codes[same] for name, codes in gallery_codes.items()},
        )
        junk = junk | soon.of(int(q), same)
        if not junk.all():
            tasks[int(q)] = Task(int(q), same[~junk], same[junk])
    return tasks


def _codes(query: pd.DataFrame, gallery: pd.DataFrame) -> tuple[Codes, Codes]:
    """The facts of names as int64 codes that both tables share; equal where the values are."""
    tables: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    for name in Name._fields:
        if name in query and name in gallery:
            values = pd.concat([query[name], gallery[name]])
            codes = pd.factorize(values, use_na_sentinel=False)[0]
            tables[0][name], tables[1][name] = codes[: len(query)], codes[len(query) :]
    return tables


def _drawn(gallery: pd.DataFrame, protocol: Protocol) -> Iterator[Rows]:
    """The gallery of each draw, as positions.

    A draw takes one image of every identity, by a number that comes from (draw, pid): who else is
    in the gallery changes nothing.
    """
    rows = np.flatnonzero(protocol.gallery_mask(gallery))
    if protocol.draws == 1:
        yield slice(None) if len(rows) == len(gallery) else rows  # a slice copies no distances
        return
    members = gallery.iloc[rows].groupby("pid").indices
    for draw in range(protocol.draws):
        chosen = []
        for pid, own in members.items():
            random = np.random.default_rng([0, draw, zlib.crc32(str(pid).encode())])
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


def _table(found: Mapping[tuple[int, int], np.ndarray], names: np.ndarray) -> pd.DataFrame:
    """`Ranking.queries` of (draw, query) → its numbers."""
    draws, queries = np.array(sorted(found), np.int64).reshape(-1, 2).T
    numbers = np.array([found[key] for key in sorted(found)]).reshape(-1, len(_NUMBERS))
    table = pd.DataFrame(numbers, columns=[*_NUMBERS]).astype(_NUMBERS)
    table.insert(0, "sample_id", names[queries])
    table.insert(1, "draw", draws)
    return table
