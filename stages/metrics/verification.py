"""Verification (do two images show one person?) and open-set identification (who is it, if anyone
of the gallery?), from scores that are larger the more alike two images are.

A threshold accepts scores that are equal to it or larger, so equal scores fall on one side. Rates
are exact: the scores of pairs of one person are kept, and at each of them the pairs of two people
are counted, block by block. A rate of accepted pairs of one person changes nowhere else, so nothing
is lost, and pairs of two people, of which there may be a thousand million, are never held.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FARS = (1e-2, 1e-3, 1e-4)
"""False accept rates at which the true accept rate is reported."""
PROBE_FARS = (1e-1, 1e-2, 1e-3)
"""The same of identification, which has a trial per query, not per pair."""
ENOUGH = 10
"""False accepts that a false accept rate must allow: of fewer, their number says little (of 10 the
95 % interval is about 5 to 18)."""
BINS = 15
"""Of equal width, of the probabilities in the calibration error (Guo et al., ICML 2017)."""
_CHUNK = 2**20
"""Log-likelihood ratios at a time, which are computed in float64."""


def refusal(far: float, trials: int, what: str = "pairs of two people") -> str | None:
    """Why so many trials say nothing about a false accept rate; None where they are enough."""
    needed = int(np.ceil(round(ENOUGH / far, 6)))
    if trials >= needed:
        return None
    return (
        f"{trials:,} {what}; FAR {100 * far:g} % needs {needed:,}, of which {ENOUGH} would be "
        "accepted"
    )


def allowed(far: float, trials: int) -> int:
    """False accepts among trials at which their share is at most `far`."""
    return int(far * trials * (1 + 1e-12))  # 0.29 · 100 is a little below 29


class Counter:
    """Counts values at and above some edges, a block of values at a time.

    Attributes:
        edges: distinct, ascending, float32 [m].
        at_least, above: values ≥ and > each edge so far, int64 [m].
        total: all values so far, also those that are −inf.
    """

    def __init__(self, edges: np.ndarray) -> None:
        self.edges = np.unique(np.asarray(edges, np.float32))
        self.at_least = np.zeros(len(self.edges), np.int64)
        self.above = np.zeros(len(self.edges), np.int64)
        self.total = 0

    def add(self, values: np.ndarray) -> None:
        """Count a block of any shape; its order plays no part.

        Raises:
            ValueError: a value is not a number.
        """
        ordered = np.sort(np.asarray(values, np.float32), axis=None)
        if len(ordered) and np.isnan(ordered[-1]):  # nan sorts last
            raise ValueError("a score is not a number")
        self.total += len(ordered)
        self.at_least += len(ordered) - np.searchsorted(ordered, self.edges, "left")
        self.above += len(ordered) - np.searchsorted(ordered, self.edges, "right")

    def __iadd__(self, other: Counter) -> Counter:
        """With the values of another one of the same edges."""
        self.at_least += other.at_least
        self.above += other.above
        self.total += other.total
        return self


class Rate(NamedTuple):
    """An operating point: scores ≥ `threshold` are accepted; None accepts nothing."""

    threshold: float | None
    far: float
    tar: float


class Roc(NamedTuple):
    """Who is accepted at each distinct score of a pair of one person, ascending.

    accepted, false: pairs of one and of two people with at least this score, int64 [m]; false_above
    with a larger one.
    """

    scores: np.ndarray
    accepted: np.ndarray
    false: np.ndarray
    false_above: np.ndarray
    genuine: int
    impostors: int

    @classmethod
    def counted(cls, genuine: np.ndarray, impostors: Counter) -> Roc:
        """Of pairs of one person, and the counted ones of two, whose edges have their scores.

        Raises:
            ValueError: a score is not a number.
        """
        if np.isnan(genuine).any():
            raise ValueError("a score is not a number")
        scores, counts = np.unique(np.asarray(genuine, np.float32), return_counts=True)
        place = np.searchsorted(impostors.edges, scores)
        accepted = np.cumsum(counts[::-1])[::-1]
        false, above = impostors.at_least[place], impostors.above[place]
        return cls(scores, accepted, false, above, int(counts.sum()), impostors.total)

    def at(self, far: float) -> Rate | None:
        """The most pairs of one person that are accepted where at most this share of pairs of two
        is; None without pairs of both kinds."""
        if not self.genuine or not self.impostors:
            return None
        fits = self.false <= allowed(far, self.impostors)
        if not fits[-1]:
            return Rate(None, 0.0, 0.0)
        first = int(fits.argmax())
        return Rate(
            float(self.scores[first]),
            float(self.false[first] / self.impostors),
            float(self.accepted[first] / self.genuine),
        )

    def curve(self) -> np.ndarray:
        """The corners of the curve, float64 [k, 2], false and true accept rate, from (1, 1) to
        (0, 0); between two of them it is straight, which for equal scores is their mean."""
        if not self.genuine or not self.impostors:
            return np.zeros((0, 2))
        fewer = np.append(self.accepted[1:], 0)
        false = np.stack([self.false, self.false_above], 1).ravel() / self.impostors
        true = np.stack([self.accepted, fewer], 1).ravel() / self.genuine
        return np.vstack([[1.0, 1.0], np.stack([false, true], 1), [0.0, 0.0]])

    def eer(self) -> float | None:
        """The rate at which as large a share of pairs of two people is accepted as of pairs of one
        is rejected, where the curve crosses; None without pairs of both kinds."""
        corners = self.curve()
        if not len(corners):
            return None
        gap = corners[:, 0] - (1 - corners[:, 1])  # from 1 to −1, never rising
        after = int((gap <= 0).argmax())
        share = gap[after - 1] / (gap[after - 1] - gap[after])
        return float(corners[after - 1, 0] + share * (corners[after, 0] - corners[after - 1, 0]))


class Probes(NamedTuple):
    """Searches of a gallery, each done twice: as it is, and without the images of the query's
    person (leave identity out), so that nobody in it is the right answer.

    mate, other: the highest score of an image of the query's person, and of anybody else, float32
    [n], −inf where there is none; right: the probability that the first image is one of the
    query's person, float [n]: 1 or 0, or the share of theirs where several images come first.
    """

    mate: np.ndarray
    other: np.ndarray
    right: np.ndarray

    def at(self, far: float) -> tuple[Rate, np.ndarray] | None:
        """Detection and identification rate where at most this share of searches without the
        person ends in an alarm, and each search's part in it, float [n]; None without a search.

        The rate (`tar`) is the share of queries whose first image is of their person and is
        accepted. The threshold is the lowest score of these.
        """
        if not len(self.mate):
            return None
        count = allowed(far, len(self.other))
        limit = np.inf if count >= len(self.other) else np.sort(self.other)[::-1][count]
        found = self.right * (self.mate > (-np.inf if np.isinf(limit) else limit))
        accepted = self.mate[found > 0]
        threshold = float(accepted.min()) if len(accepted) else None
        alarms = 0.0 if threshold is None else float((self.other >= threshold).mean())
        return Rate(threshold, alarms, float(found.mean())), found


def first_is_right(
    mate: npt.ArrayLike, other: npt.ArrayLike, mates: npt.ArrayLike, others: npt.ArrayLike
) -> np.ndarray:
    """`Probes.right`: of the highest scores, and how many images of each kind have them."""
    mate, other, mates, others = map(np.asarray, (mate, other, mates, others))
    shared = mates / np.maximum(mates + others, 1)
    return np.where(mate > other, 1.0, np.where(mate == other, shared, 0.0))


class Evidence:
    """How good log-likelihood ratios are, both kinds of pairs weighted equally.

    They say how many times likelier a score is for one person than for two: 0 means even odds
    where both are equally frequent. Sums are kept, not ratios.
    """

    def __init__(self) -> None:
        self.cost = np.zeros(2)
        self.counts = np.zeros((2, BINS), np.int64)
        self.probabilities = np.zeros((2, BINS))

    def add(self, ratios: np.ndarray, same: bool) -> None:
        """Add the ratios of pairs that all show one person, or all two; of any shape."""
        kind, flat = int(same), ratios.ravel()
        for start in range(0, len(flat), _CHUNK):
            part = flat[start : start + _CHUNK].astype(np.float64)
            self.cost[kind] += np.logaddexp(0, -part if same else part).sum() / np.log(2)
            probability = np.exp(-np.logaddexp(0, -part))
            bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
            self.counts[kind] += np.bincount(bins, minlength=BINS)
            self.probabilities[kind] += np.bincount(bins, probability, BINS)

    def __iadd__(self, other: Evidence) -> Evidence:
        """With the pairs of another one."""
        self.cost += other.cost
        self.counts += other.counts
        self.probabilities += other.probabilities
        return self

    @property
    def complete(self) -> bool:
        """Whether there are pairs of both kinds."""
        return bool(self.counts.sum(1).all())

    def cllr(self) -> float:
        """The cost in bits: 0 of perfect ratios, 1 of those that say nothing (Brümmer & du Preez,
        Computer Speech & Language 2006); nan without pairs of both kinds."""
        return float((self.cost / self.counts.sum(1)).mean()) if self.complete else float("nan")

    def bins(self) -> np.ndarray:
        """Of each bin that has pairs: its weight, of 1 in all, the mean probability that ratios
        say at even priors, and the share of pairs of one person: float64 [k, 3]."""
        weights = 0.5 / np.maximum(self.counts.sum(1), 1)
        weight, stated = weights @ self.counts, weights @ self.probabilities
        found = np.stack([weight, stated, weights[1] * self.counts[1]], 1)[weight > 0]
        found[:, 1:] /= found[:, :1]
        return found

    def error(self) -> float:
        """Expected calibration error: by how much probabilities at even priors differ from the
        share of pairs of one person that have them, in the mean; nan as above."""
        if not self.complete:
            return float("nan")
        weight, stated, true = self.bins().T
        return float((weight * np.abs(stated - true)).sum())
