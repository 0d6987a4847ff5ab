"""Which samples, under which view, make up each batch: a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def _rng(*counter: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(counter)))


def pk_batches(
    labels: np.ndarray, identities: int, images: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """The batches of one epoch: rows of P identities × K images each.

    labels: int [N]. Every identity's images are shuffled and dealt in groups of K; an identity
    with fewer than K repeats its own, a rest of fewer than K waits for another epoch, as is usual
    in re-identification. A batch draws P identities, each with a probability that grows with the
    groups that it has left, so that people with many images come early and late alike. There are as
    many batches as the groups allow. Empty where there are fewer than P identities.
    """
    rng = _rng(seed, epoch)
    groups: list[list[np.ndarray]] = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) < images:
            rows = np.resize(rows, images)
        ends = range(images, len(rows) + 1, images)
        groups.append([rows[end - images : end] for end in ends])
    left = np.array([len(dealt) for dealt in groups])
    batches: list[np.ndarray] = []
    for remaining in range(_most_batches(left, identities), 0, -1):
        # Who has a group for every batch that remains must be in each, or groups are left over.
        usable = np.minimum(left, remaining)
        due = rng.permutation(np.flatnonzero(usable == remaining))[:identities]
        usable[due] = 0
        others = identities - len(due)
        chosen = due
        if others:
            share = usable / usable.sum()
            chosen = np.append(due, rng.choice(len(left), others, replace=False, p=share))
        left[chosen] -= 1
        batches.append(np.concatenate([groups[identity].pop() for identity in chosen]))
    return batches


def _most_batches(groups: np.ndarray, identities: int) -> int:
    """The largest number of batches of P different identities that groups [I] allow."""
    most = int(groups.sum()) // identities
    while most and (enough := int(np.minimum(groups, most).sum()) // identities) < most:
        most = enough
    return most


def view_of(row: int, epoch: int, occurrence: int, views: int, seed: int) -> int:
    """The view shown of a sample: all its views in turn, epoch by epoch, from a drawn start.

    `occurrence` counts how often the epoch has shown the sample already.
    """
    start = int(_rng(seed, row).integers(views))
    return (start + epoch + occurrence) % views


def endless(rows: np.ndarray, start: int, count: int, seed: int) -> np.ndarray:
    """`count` rows from place `start` on of an endless series: all rows shuffled, then again."""
    places = np.arange(start, start + count)
    rounds = {
        n: _rng(seed, 1, n).permutation(rows) for n in np.unique(places // len(rows)).tolist()
    }
    return np.array([rounds[place // len(rows)][place % len(rows)] for place in places.tolist()])


class PKSampler:
    """Batches of (row, view) pairs for a DataLoader; call `set_epoch` before each epoch.

    Of several processes each gets its share of every batch's identities: `identities` counts those
    of the whole batch and must be divisible by `ranks`.
    """

    def __init__(
        self,
        labels: np.ndarray,
        identities: int,
        images: int,
        views: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        usable: np.ndarray | None = None,
        extra: int = 0,
    ) -> None:
        """labels: int [N], negative of rows without a label; usable: bool [N], the rows that
        batches may hold, all if None; extra: rows without a label that are added to each batch,
        divisible by `ranks` like the identities."""
        if identities % ranks or extra % ranks:
            what = f"{identities} identities, {extra} images without labels"
            raise ValueError(f"{what} can't be shared among {ranks} processes")
        may = np.ones(len(labels), bool) if usable is None else usable
        rows = np.flatnonzero(may & (labels >= 0))
        self.rows, self.labels = rows, labels[rows]
        self.extra, self.unlabelled = extra, np.flatnonzero(may & (labels < 0))
        self.identities, self.images = identities, images
        self.views, self.seed = views, seed
        self.rank, self.ranks = rank, ranks
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """start: batches of the epoch that are skipped."""
        self.epoch, self.start = epoch, start

    def short_identities(self) -> int:
        """Identities with fewer than K images, which repeat some of their own."""
        return int((np.unique(self.labels, return_counts=True)[1] < self.images).sum())

    def _batches(self) -> list[np.ndarray]:
        return pk_batches(self.labels, self.identities, self.images, self.seed, self.epoch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shown: dict[int, int] = {}
        batches = self._batches()
        for number, rows in enumerate(batches):
            start = (self.epoch * len(batches) + number) * self.extra
            more = endless(self.unlabelled, start, self.extra, self.seed).tolist()
            batch = []
            for row in (*self.rows[rows].tolist(), *more):
                occurrence = shown[row] = shown.get(row, -1) + 1
                view = view_of(row, self.epoch, occurrence, self.views, self.seed)
                batch.append((row, view))
            if number >= self.start:
                labelled, others = batch[: len(rows)], batch[len(rows) :]
                groups = [labelled[i : i + self.images] for i in range(0, len(rows), self.images)]
                mine = [pair for group in groups[self.rank :: self.ranks] for pair in group]
                yield mine + others[self.rank :: self.ranks]

    def __len__(self) -> int:
        return max(len(self._batches()) - self.start, 0)
