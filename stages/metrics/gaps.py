"""Which gallery images were taken too soon before or after a query."""

from __future__ import annotations

import numpy as np
import pandas as pd


class Near:
    """Gallery images whose time differs from a query's by less than a gap.

    Args:
        query, gallery: tables with pid, `time`, microseconds, and, where what is ranked took a
            while, `time_end`; then the difference is that of the nearest ends, 0 where they
            overlap.
        gap: seconds; at 0 no image is near, and no time is read.
    """

    def __init__(self, query: pd.DataFrame, gallery: pd.DataFrame, gap: int) -> None:
        self.gap, self.images = gap * 1_000_000, len(gallery)
        if gap:
            self.query, self.gallery = _ends(query), _ends(gallery)
            pids = pd.factorize(pd.concat([query["pid"], gallery["pid"]]))[0]
            self.query_pid, self.gallery_pid = pids[: len(query)], pids[len(query) :]

    def of(self, query: int, images: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Which of some gallery images are near to a query, whoever they show: bool [images]."""
        if not self.gap:
            return np.zeros(self.images, bool)[images]
        start, end = (each[query] for each in self.query)
        first, last = (each[images] for each in self.gallery)
        return np.asarray((first - end < self.gap) & (start - last < self.gap))

    def others(self, query: int, images: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Which of them show other people: bool [images]."""
        near = self.of(query, images)
        return near & (self.gallery_pid[images] != self.query_pid[query]) if self.gap else near

    def without_others(self, distances: np.ndarray, first: int) -> np.ndarray:
        """Distances of queries from `first` on, [rows, G], NaN for near images of other people.

        NaN is neither nearer than any distance nor as near, and is sorted behind all of them.
        """
        if not self.gap:
            return distances
        found = np.array(distances)
        for row, each in enumerate(found, first):
            each[self.others(row)] = np.nan
        return found


def _ends(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """When each image, or tracklet, begins and ends, microseconds: int64 [n] each."""
    last = "time_end" if "time_end" in table else "time"
    return table["time"].to_numpy(np.int64), table[last].to_numpy(np.int64)
