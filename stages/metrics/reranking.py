"""k-reciprocal re-ranking in memory that grows with the images, not with their square.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017: two
images are near if their neighbourhoods are alike. A neighbourhood is kept as the few images in
it and their weights.
"""

from __future__ import annotations

from collections.abc import Callable

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
    neighbours, and none by way of another. k1: neighbours that must be mutual; k2: nearest whose
    neighbourhoods are averaged; weight: of the old distance against the Jaccard distance. No result
    depends on block, the rows at a time at most, and memory, the bytes for distances and
    neighbourhoods.

    Raises:
        MemoryError: the neighbourhoods need more; the message says how much was reached.
    """
    count = queries + others
    seen = np.ones(count, bool) if known is None else known
    k1, k2 = min(k1, count - 1), min(k2, count)
    near, largest = np.empty((count, k1 + 1), np.int64), np.empty(count)
    # A row of distances is copied about twice while it is sorted.
    block = int(min(max(memory / 4 / (16 * count), 1), block))
    blocks = [*slices(count, block)]
    held = _Held(memory, near.nbytes)
    for part in blocks:
        rows = distances(part)
        largest[part] = np.maximum(rows.max(1), np.finfo(np.float32).tiny)
        near[part] = [_nearest(i, row, k1 + 1) for i, row in enumerate(rows, part.start)]
    raw: list[Neighbourhood] = []
    for row in (row for part in blocks for row in distances(part)):
        i = len(raw)
        images = _neighbours(i, near, k1) if seen[i] else np.array([i])
        raw.append(held.add(_weighed(images[seen[images] | (images == i)], row / largest[i])))
    averaged = [
        held.add(_average([raw[j] for j in near[i, :k2]])) if seen[i] else raw[i]
        for i in range(count)
    ]
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
    """Counts the bytes of neighbourhoods; MemoryError where they are more than may be held."""

    def __init__(self, limit: float, held: int) -> None:
        self.limit, self.bytes = limit, held

    def add(self, neighbourhood: Neighbourhood) -> Neighbourhood:
        self.bytes += sum(part.nbytes for part in neighbourhood) + _OVERHEAD
        if self.bytes > self.limit:
            raise MemoryError(f"more than {self.limit / 1e9:g} GB of neighbourhoods")
        return neighbourhood


_OVERHEAD = 300
"""Bytes of Python's objects around a neighbourhood."""


def _nearest(i: int, row: np.ndarray, count: int) -> np.ndarray:
    """The image itself and then the nearest, equal ones by position: int64 [count]."""
    row = row.copy()
    row[i] = -1
    within = np.flatnonzero(row <= np.partition(row, count - 1)[count - 1])
    return within[np.argsort(row[within], kind="stable")][:count]


def _mutual(i: int, near: np.ndarray, k: int) -> np.ndarray:
    """The images among the k nearest of i (and i) that have i among theirs."""
    forward = near[i, : k + 1]
    return forward[(near[forward, : k + 1] == i).any(1)]


def _neighbours(i: int, near: np.ndarray, k: int) -> np.ndarray:
    """The mutual neighbours, and those of each, within half the range, that mostly agree."""
    mutual = _mutual(i, near, k)
    found = [mutual]
    for j in mutual:
        theirs = _mutual(int(j), near, round(k / 2))
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
