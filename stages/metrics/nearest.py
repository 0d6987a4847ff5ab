"""The nearest images of each query, and what the first one shows where it is another person's."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

_MIX = np.uint32(2654435761)
"""Multiplied by it, neighbouring numbers lie far apart (Knuth's multiplicative hash)."""
_LIST = ("query", "rank", "sample_id", "distance", "positive")
_FIRST = ("query", "fact", "value", "share")


class Nearest:
    """Collects them, a query at a time.

    Args:
        gallery: the images that are ranked, with sample_id and `facts`.
        count: how many images of each query are listed; 0: none.
        facts: columns of which it is counted what the first images show.
    """

    def __init__(self, gallery: pd.DataFrame, count: int, facts: Sequence[str]) -> None:
        self.names, self.count = gallery["sample_id"].to_numpy(), count
        hashes = [zlib.crc32(name.encode()) for name in self.names if count]
        self.keys = np.array(hashes, np.uint32)
        self.facts = {name: pd.factorize(gallery[name]) for name in facts}
        self._lists: list[tuple[Any, ...]] = []
        self._firsts: list[tuple[Any, ...]] = []

    def add(
        self, query: str, distances: np.ndarray, positive: np.ndarray, junk: np.ndarray
    ) -> None:
        """A query; distances: float [G]; positive, junk: positions of its person's images."""
        if self.count:
            self._lists.append((query, *self._nearest(query, distances, positive, junk)))
        if self.facts:
            near = distances.copy()
            near[junk] = np.inf
            first = np.flatnonzero(near == near.min())
            wrong = first[~np.isin(first, positive)]
            for name, (codes, values) in self.facts.items():
                known = codes[wrong][codes[wrong] >= 0]
                shown, counts = np.unique(known, return_counts=True)
                fact = np.full(len(shown), name, object)
                self._firsts.append((query, fact, values[shown], counts / len(first)))

    def lists(self) -> pd.DataFrame:
        """Columns query, rank, sample_id, distance, positive; see `ranking.Ranking`."""
        return _stacked(_LIST, self._lists)

    def firsts(self) -> pd.DataFrame:
        """Columns query, fact, value, share; see `ranking.Ranking`."""
        return _stacked(_FIRST, self._firsts)

    def _nearest(
        self, query: str, row: np.ndarray, positive: np.ndarray, junk: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Ranks, names, distances, whether positive: of the nearest without the junk, and of the
        nearest positive if it is none of them.

        Equally near images share one rank, their mean; their order comes from the query and `keys`,
        a hash of each name.
        """
        wide = min(self.count + len(junk), len(row))
        near = np.flatnonzero(row <= np.partition(row, wide - 1)[wide - 1])
        near = self._ordered(query, row, near[~np.isin(near, junk)])
        _, start, size = np.unique(row[near], return_index=True, return_counts=True)
        ranks = np.repeat(start + (size + 1) / 2, size)[: self.count]
        near = near[: self.count]
        if len(near) and not np.isin(near, positive).any():
            first = self._ordered(query, row, positive)[:1]
            nearer = np.count_nonzero(row < row[first]) - np.count_nonzero(row[junk] < row[first])
            tied = np.count_nonzero(row == row[first]) - np.count_nonzero(row[junk] == row[first])
            near, ranks = np.append(near, first), np.append(ranks, nearer + (tied + 1) / 2)
        return ranks, self.names[near], row[near], np.isin(near, positive)

    def _ordered(self, query: str, row: np.ndarray, images: np.ndarray) -> np.ndarray:
        drawn = (self.keys[images] ^ zlib.crc32(query.encode())) * _MIX
        return images[np.lexsort((drawn, row[images]))]


def _stacked(columns: Sequence[str], parts: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """A table of (query, columns of its rows …)."""
    if not parts:
        return pd.DataFrame(columns=[*columns])
    queries, *values = zip(*parts, strict=True)
    names = np.repeat(np.asarray(queries, object), [len(each) for each in values[0]])
    found = [names, *(np.concatenate(each) for each in values)]
    return pd.DataFrame(dict(zip(columns, found, strict=True)))
