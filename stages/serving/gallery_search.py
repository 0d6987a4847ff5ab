"""Exact search: every picture of a gallery is compared with every query, a block at a time.

A block of the database's rows is multiplied with the queries at once, which gives scores to
float32's rounding. The few that may be among the best are then scored by `similarity` itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from deskpro.stages.metrics.calibration import CASES
from deskpro.stages.metrics.fusion import Fusion
from deskpro.stages.serving.encoder import Features
from deskpro.stages.serving.gallery_table import PictureTable

MEMORY = 256
"""MiB for blocks of rows and their scores, unless given."""
_ROWS = 8192
"""Rows of the largest block: as float32 they stay in a processor's cache."""
_QUERIES = 256
"""Queries of one pass over the rows."""
_ROUNDING = 1e-5
"""How far products may be off for vectors of length 1 and weights of 1."""
_TIES = 4096
"""Candidates that are kept of those too close to the last place to tell."""


class Comparison(NamedTuple):
    """How an encoder compares descriptors."""

    parts: Mapping[str, slice]
    """Of a vector."""
    fusion: Fusion | None
    similarity: Callable[[Features, Features], np.ndarray]


class Hits(NamedTuple):
    """The pictures found for a query, the best first; equal scores: the one added first."""

    numbers: np.ndarray
    """int64 [n]"""
    scores: np.ndarray
    """float32 [n]"""
    has_face: np.ndarray
    """bool [n]"""


_NONE = Hits(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, bool))


def search(
    table: PictureTable,
    comparison: Comparison,
    queries: Features,
    top: int,
    where: str | None = None,
    threshold: float | None = None,
    memory: int = MEMORY,
) -> list[Hits]:
    """The `top` most similar pictures of each query, by `comparison.similarity`.

    Args:
        where: a condition for the pictures.
        threshold: the least score.
        memory: MiB for blocks of rows and scores. The queries, what is found and the database's
            own buffers come on top.
    """
    # float16 and float32 of a row and its mask, scores and their terms of a block.
    step = max(1, min(_QUERIES, memory * 2**20 // (16 * 256)))
    width = 6 * queries.vectors.shape[1] + 12 * min(len(queries), step)
    rows = max(1, min(_ROWS, memory * 2**20 // width))
    found: list[Hits] = []
    for start in range(0, len(queries), step):
        best = _Best(comparison, queries[start : start + step], top, threshold)
        for block in table.batches(("number", "has_face", *comparison.parts), where, rows):
            best.add(block)
        found += best.hits()
    return found


def search_by_case(
    table: PictureTable,
    comparison: Comparison,
    queries: Features,
    top: int,
    where: str | None,
    thresholds: Mapping[str, float],
    memory: int = MEMORY,
) -> list[Hits]:
    """`search` with a least score for each face case; pairs of a case without one aren't found.

    Each case is a search of its own, of the queries and among the pictures with or without a face.

    thresholds: name of a case (`metrics.calibration.CASES`) → the least score.
    """
    found = [[_NONE] for _ in range(len(queries))]
    for query_face, picture_face in product((True, False), repeat=2):
        threshold = thresholds.get(CASES[2 - query_face - picture_face])
        chosen = np.flatnonzero(queries.has_face == query_face)
        if threshold is None or not len(chosen):
            continue
        of_case = " AND ".join(filter(None, (where and f"({where})", f"has_face = {picture_face}")))
        some = search(table, comparison, queries[chosen], top, of_case, threshold, memory)
        for query, hits in zip(chosen.tolist(), some, strict=True):
            found[query].append(hits)
    return [_best_of(hits, top) for hits in found]


def _best_of(several: Sequence[Hits], top: int) -> Hits:
    numbers, scores, has_face = (np.concatenate(parts) for parts in zip(*several, strict=True))
    order = np.lexsort((numbers, -scores))[:top]
    return Hits(numbers[order], scores[order], has_face[order])


class _Best:
    """The best rows so far of some queries."""

    def __init__(
        self, comparison: Comparison, queries: Features, top: int, threshold: float | None
    ) -> None:
        self.comparison, self.features = comparison, queries
        self.top, self.threshold = top, threshold
        fusion = comparison.fusion
        self.margin = _ROUNDING * (
            1 if fusion is None else 1 + sum(map(abs, fusion.facts().values()))
        )
        least = -np.inf if threshold is None else threshold - self.margin
        self.floor = torch.full((len(queries),), least)
        """Of each query, the score that a row needs."""
        self.counts = np.zeros(len(queries), np.int64)
        self.queries = {
            name: torch.from_numpy(np.ascontiguousarray(queries.vectors[:, part]))
            for name, part in comparison.parts.items()
        }
        self.has_face = torch.from_numpy(queries.has_face)
        self.kept: dict[str, np.ndarray] = {}

    def add(self, block: Mapping[str, np.ndarray]) -> None:
        """Compare the rows of a block."""
        scores = self._scores(block)
        count = min(self.top, scores.shape[1])
        if (self.counts < self.top).any() and count == self.top:
            place = scores.topk(count).values[:, -1] - self.margin
            floor = torch.maximum(self.floor, place)
        else:
            floor = self.floor
        query, row = (scores >= floor[:, None]).nonzero(as_tuple=True)
        if not len(query):
            return
        at = row.numpy()
        self._merge(
            {
                "query": query.numpy(),
                "score": scores[query, row].numpy(),
                "number": block["number"][at],
                "has_face": block["has_face"][at],
                **{name: block[name][at] for name in self.comparison.parts},
            }
        )

    def _scores(self, block: Mapping[str, np.ndarray]) -> torch.Tensor:
        """The scores of a block, float32 [Q, n], to rounding."""
        fusion = self.comparison.fusion
        rows = {name: _float(block[name]) for name in self.comparison.parts}
        if fusion is None:
            ((name, values),) = rows.items()
            return self.queries[name] @ values.T
        scores = self.queries["body"] @ rows["body"].T
        picture_face = torch.from_numpy(block["has_face"])
        if not (self.has_face.any() and picture_face.any()):
            return scores.mul_(fusion.body_alone).add_(fusion.bias_alone)
        if (fusion.body, fusion.bias) == (fusion.body_alone, fusion.bias_alone):
            # One formula for all pairs: a face that isn't there is 0.
            query, weights = self.queries["face"], {"beta": fusion.body, "alpha": fusion.face}
            return scores.addmm_(query, rows["face"].T, **weights).add_(fusion.bias)
        face = self.queries["face"] @ rows["face"].T
        both = self.has_face[:, None] & picture_face
        together = face.mul_(fusion.face).add_(scores, alpha=fusion.body).add_(fusion.bias)
        return torch.where(both, together, scores.mul_(fusion.body_alone).add_(fusion.bias_alone))

    def _merge(self, new: dict[str, np.ndarray]) -> None:
        """Keep what may be among the best of each query, and raise the floors."""
        kept = self.kept
        both = {n: np.concatenate([kept[n], new[n]]) if kept else new[n] for n in new}
        order = np.lexsort((both["number"], -both["score"], both["query"]))
        query, score = both["query"][order], both["score"][order]
        starts = np.searchsorted(query, np.arange(len(self.features)))
        counts = np.bincount(query, minlength=len(self.features))
        last = np.flatnonzero(counts >= self.top)
        places = score[starts[last] + self.top - 1] - self.margin
        self.floor[last] = torch.maximum(self.floor[last], torch.from_numpy(places).float())
        good = score >= self.floor.numpy()[query]
        if (counts > self.top + _TIES).any():
            good &= self._few(both["number"][order], query, score, good)
        chosen = order[good]
        self.kept = {name: values[chosen] for name, values in both.items()}
        self.counts = np.bincount(self.kept["query"], minlength=len(self.features))

    def _few(
        self, number: np.ndarray, query: np.ndarray, score: np.ndarray, good: np.ndarray
    ) -> np.ndarray:
        """Of rows that may equal the last place, the first added; of the better, all."""
        clear = score > self.floor.numpy()[query] + 2 * self.margin
        keep = good & clear
        close = np.flatnonzero(good & ~clear)
        close = close[np.lexsort((number[close], query[close]))]
        starts = np.searchsorted(query[close], query[close])
        keep[close[np.arange(len(close)) - starts < self.top + _TIES]] = True
        return keep

    def hits(self) -> list[Hits]:
        """What is found, scored by `similarity` in double precision: equal rows score equally."""
        found = []
        for i in range(len(self.features)):
            rows = np.flatnonzero(self.kept["query"] == i) if self.kept else np.zeros(0, np.int64)
            if not len(rows):
                found.append(_NONE)
                continue
            parts = [self.kept[name][rows].astype(np.float64) for name in self.comparison.parts]
            pictures = Features(np.concatenate(parts, 1), self.kept["has_face"][rows])
            one = self.features[i : i + 1]
            query = Features(one.vectors.astype(np.float64), one.has_face)
            scores = self.comparison.similarity(query, pictures)[0].astype(np.float32)
            numbers = self.kept["number"][rows]
            order = np.lexsort((numbers, -scores))[: self.top]
            if self.threshold is not None:
                order = order[scores[order] >= self.threshold]
            found.append(Hits(numbers[order], scores[order], pictures.has_face[order]))
        return found


def _float(values: np.ndarray) -> torch.Tensor:
    """float16 [n, D] as float32; torch converts in a tenth of numpy's time."""
    with warnings.catch_warnings():  # the database's memory can't be written, nor is it
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values).float()
