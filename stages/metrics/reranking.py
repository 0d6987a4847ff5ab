"""k-reciprocal re-ranking in memory that grows with the images, not with their square.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017: two
images are near if their neighbourhoods are alike. A neighbourhood is kept as the few images in
it and their weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from deskpro.stages.metrics.ranking import Distances, slices

Neighbourhood = tuple[np.ndarray, np.ndarray]
"""Images, ascending int64 [n], and their weights, float64 [n], which sum to 1."""


def reranked(
    distances: Distances,
    queries: int,
    others: int,
    *,
    known: np.ndarray | None = None,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    block: int = 256,
    memory: float = 2e9,
) -> Callable[[slice], np.ndarray]:
    """Some queries → their new distances to the gallery, float32 [n, others].

    distances: of rows among queries and gallery, in this order, to all of these, squared Euclidean
    or proportional to it, [n, queries + others]; they are divided by each row's largest (as the
    authors do). known: bool [queries + others], which have a feature at all; the others have no
    neighbours, and are nobody's. k1: neighbours that must be mutual; k2: nearest whose
    neighbourhoods are averaged; all that are as near as the last count, so that no result depends
    on the order of images. weight: of the old distance against the Jaccard distance. No result
    depends on block, the rows at a time at most, and memory, the bytes for distances and
    neighbourhoods.

    Raises:
        MemoryError: the neighbourhoods need more; the message says how much was reached.
    """
    count = queries + others
    seen = np.ones(count, bool) if known is None else known
    # A row of distances is copied about twice while it is sorted.
    block = int(min(max(memory / 4 / (16 * count), 1), block))
    blocks, held = [*slices(count, block)], _Held(memory)
    largest, nearest = np.empty(count), list[tuple[np.ndarray, np.ndarray]]()
    for part in blocks:
        rows = distances(part)
        largest[part] = np.maximum(rows.max(1), np.finfo(np.float32).tiny)
        rows = np.where(seen[part, None] & seen, rows, np.float32(np.inf))
        nearest += [
            held.add(_nearest(i, row, max(k1, k2 - 1))) for i, row in enumerate(rows, part.start)
        ]
    near = _Near.padded(nearest, held)
    raw: list[Neighbourhood] = []
    for row in (row for part in blocks for row in distances(part)):
        images = _neighbours(len(raw), near, k1)
        raw.append(held.add(_weighed(images, row / largest[len(raw)])))
    averaged = [held.add(_average([raw[j] for j in near.within(i, k2 - 1)])) for i in range(count)]
    containing = _by_image(averaged[queries:])

    def new(rows: slice) -> np.ndarray:
        old = distances(rows)[:, queries:] / largest[rows, None]
        found = np.empty((len(old), others), np.float32)
        for i, row in enumerate(range(*rows.indices(queries))):
            shared = np.zeros(others)
            for image, mine in zip(*averaged[row], strict=True):
                who, theirs = containing.get(int(image), _NOTHING)
                shared[who] += np.minimum(mine, theirs)
            found[i] = (1 - weight) * (1 - shared / (2 - shared)) + weight * old[i]
        return found

    return new


_NOTHING = np.empty(0, np.int64), np.empty(0)


class _Held:
    """Counts the bytes that are held; MemoryError where they are more than may be."""

    def __init__(self, limit: float) -> None:
        self.limit, self.bytes = limit, 0

    def take(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self.limit:
            raise MemoryError(f"more than {self.limit / 1e9:g} GB of neighbourhoods")

    def add(self, arrays: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        self.take(sum(part.nbytes for part in arrays) + _OVERHEAD)
        return arrays


_OVERHEAD = 300
"""Bytes of Python's objects around a neighbourhood."""


class _Near(NamedTuple):
    """The nearest images of each, int64 [images, most of any], and how many are nearer."""

    images: np.ndarray
    places: np.ndarray

    @classmethod
    def padded(cls, rows: list[tuple[np.ndarray, np.ndarray]], held: _Held) -> _Near:
        shape = len(rows), max(len(images) for images, _ in rows)
        held.take(2 * 8 * math.prod(shape))
        near = cls(np.full(shape, -1), np.full(shape, len(rows)))
        for i, (images, places) in enumerate(rows):
            near.images[i, : len(images)], near.places[i, : len(places)] = images, places
        return near

    def within(self, i: int, k: int) -> np.ndarray:
        """The image itself and its k nearest, with all that are as near as the last."""
        return self.images[i][self.places[i] <= k]

    def mutual(self, i: int, k: int) -> np.ndarray:
        """Those of them that have `i` among theirs."""
        forward = self.within(i, k)
        back = (self.images[forward] == i) & (self.places[forward] <= k)
        return forward[back.any(1)]


def _nearest(i: int, row: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The image itself, and what is as near as its k nearest: images, and how many are nearer."""
    row[i] = -1
    last = np.partition(row, k)[k] if k < len(row) else np.inf
    images = np.flatnonzero((row <= last) & (row < np.inf))
    images = images[np.argsort(row[images], kind="stable")]
    return images, np.searchsorted(row[images], row[images])


def _neighbours(i: int, near: _Near, k: int) -> np.ndarray:
    """The mutual neighbours, and those of each, within half the range, that mostly agree."""
    mutual = near.mutual(i, k)
    found = [mutual]
    for j in mutual:
        theirs = near.mutual(int(j), round(k / 2))
        if 3 * np.isin(theirs, mutual).sum() > 2 * len(theirs):
            found.append(theirs)
    return np.unique(np.concatenate(found))


def _weighed(images: np.ndarray, row: np.ndarray) -> Neighbourhood:
    weights = np.exp(-row[images].astype(np.float64))
    return images, weights / weights.sum()


def _average(parts: list[Neighbourhood]) -> Neighbourhood:
    images, places = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    return images, np.bincount(places, np.concatenate([part[1] for part in parts])) / len(parts)


def _by_image(neighbourhoods: list[Neighbourhood]) -> dict[int, Neighbourhood]:
    """Image → the neighbourhoods that contain it, by position, and its weight in each."""
    who = np.repeat(np.arange(len(neighbourhoods)), [len(each[0]) for each in neighbourhoods])
    images = np.concatenate([each[0] for each in neighbourhoods])
    weights = np.concatenate([each[1] for each in neighbourhoods])
    order = np.argsort(images, kind="stable")
    found, starts = np.unique(images[order], return_index=True)
    ends = [*starts[1:], len(order)]
    return {
        int(image): (who[order[start:end]], weights[order[start:end]])
        for image, start, end in zip(found, starts, ends, strict=True)
    }
