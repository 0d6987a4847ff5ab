"""CMC, mAP and mINP from distances, exact and deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages.metrics.protocols import Protocol

Distances = Callable[[slice], np.ndarray]
"""A block of queries → their distances to the whole gallery, [block, G]."""


@dataclass(frozen=True)
class Ranking:
    """One row per query that counts, in query order."""

    queries: pd.DataFrame
    """Columns sample_id, ap (average precision), inp (inverse negative penalty), first (rank of the
    first positive, from 1), positives."""
    skipped: int
    """Queries without a positive in their gallery; they count nowhere."""

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


def rank(
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    distances: Distances,
    protocol: Protocol,
    block: int = 256,
) -> Ranking:
    """Rank the gallery for every query under a protocol, `block` queries at a time.

    AP is the mean, over a query's positives, of the precision at each one's rank. Equal distances
    are ordered by gallery position.
    """
    rows, skipped = [], 0
    pids = gallery["pid"].to_numpy()
    for position, row_distances in _rows(len(query), distances, block):
        who = query.iloc[position]
        kept = ~protocol.removed(who, gallery)
        ranks = positive_ranks(row_distances[kept], (pids == who["pid"])[kept])
        if not len(ranks):
            skipped += 1
            continue
        rows.append(
            {
                "sample_id": who["sample_id"],
                "ap": float((np.arange(1, len(ranks) + 1) / ranks).mean()),
                "inp": len(ranks) / int(ranks[-1]),
                "first": int(ranks[0]),
                "positives": len(ranks),
            }
        )
    types = {"sample_id": object, "ap": float, "inp": float, "first": int, "positives": int}
    return Ranking(pd.DataFrame(rows, columns=list(types)).astype(types), skipped)


def positive_ranks(distances: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The ranks (from 1) of the positives, ascending: int64 [positives].

    distances float [G], positive bool [G]. A rank is counted, not sorted for: one plus the number
    of pictures that are nearer, or as near and earlier in the gallery.
    """
    at = np.flatnonzero(positive)
    at = at[np.argsort(distances[at], kind="stable")]
    wanted = distances[at]
    nearer = np.searchsorted(wanted, distances, side="right")
    ranks = np.cumsum(np.bincount(nearer, minlength=len(at) + 1))[: len(at)] + 1
    as_near = np.flatnonzero(np.searchsorted(wanted, distances, side="left") < nearer)
    for i, (where, distance) in enumerate(zip(at, wanted, strict=True)):
        ranks[i] += np.count_nonzero(distances[as_near[as_near < where]] == distance)
    return ranks


def _rows(queries: int, distances: Distances, block: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, queries, block):
        rows = slice(start, min(start + block, queries))
        for offset, row in enumerate(distances(rows)):
            yield start + offset, row
