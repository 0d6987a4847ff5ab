"""What a score means: fitted on pairs of held-out people, apart by whether faces are seen.

A score becomes the log-likelihood ratio slope·score + bias: how many times likelier it is for one
person than for two, 0 meaning even odds where both are equally frequent.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from deskpro.stages.base.calibrated import FIRST, STEPS, Case
from deskpro.stages.base.errors import InputError
from deskpro.stages.metrics.fusion import Fusion, fit_logistic
from deskpro.stages.metrics.intervals import pair_interval
from deskpro.stages.metrics.verification import ENOUGH, allowed

CASES = ("face-face", "face-none", "none-none")
"""Which of two images have a face: both, one, or none."""
FITTED = "all, fitted"
"""Name of the calibration of both streams, weighed as fitted."""
LEAST = 20
"""Pairs of each kind below which nothing is fitted: ten for each of two coefficients. Fitted on 15,
the calibration error on the benchmark's test people was 0.05 to 0.10."""
HIGHEST_FAR = 0.5


def face_cases(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Place in `CASES` of each pair, int8 [N, M]; which images have a face: bool [N] and [M]."""
    return np.int8(2) - first.astype(np.int8)[:, None] - second.astype(np.int8)


def calibration_name(stream: str, fusion: Fusion | None = None) -> str:
    """Under which name the calibration of a stream is kept; fusion: of both streams."""
    if fusion is None:
        return stream
    return f"all, {fusion.face:g}" if fusion == Fusion.fixed(fusion.face) else FITTED


def log_ratios(
    calibration: Mapping[str, Case], scores: np.ndarray, cases: npt.ArrayLike
) -> np.ndarray:
    """Log-likelihood ratios, float32 of the shape of scores; nan in cases without any.

    cases: places in `CASES`, of a shape that broadcasts.
    """
    found = [calibration.get(name) for name in CASES]
    lines = [
        (np.nan, np.nan) if case is None or case.slope is None else (case.slope, case.bias)
        for case in found
    ]
    slope, bias = np.asarray(lines, np.float32).T
    places = np.asarray(cases)
    return scores * slope[places] + bias[places]


def require_far(far: float) -> None:
    """Raise InputError where a number is no false accept rate of a decision."""
    number = isinstance(far, int | float) and not isinstance(far, bool)
    if not (number and 0 < far <= HIGHEST_FAR):
        raise InputError(f"far is {far!r}; must be above 0, up to {HIGHEST_FAR}, such as 1e-3")


def fit_case(scores: np.ndarray, same: np.ndarray, people: np.ndarray) -> Case:
    """Calibrate a face case.

    Both kinds of pairs have equal weight in the logistic regression. There is none where a kind has
    fewer than 20 pairs, or where higher scores don't speak for one person.

    Args:
        scores: of n pairs, float [n], larger the more alike.
        same: whether they show one person, bool [n].
        people: numbers of their people from 0 on, int [2, n].
    """
    scores = np.asarray(scores, np.float32)
    genuine, impostors = int(same.sum()), int((~same).sum())
    limits = _thresholds(scores[~same], people[:, ~same])
    if min(genuine, impostors) < LEAST:
        reason = (
            f"{genuine} pairs of one held-out person and {impostors} of two; each must be "
            f"{LEAST} or more"
        )
        return Case(None, None, genuine, impostors, reason, *limits)
    fewer = min(genuine, impostors)
    weights = np.where(same, fewer / genuine, fewer / impostors)
    bias, (slope,) = fit_logistic(scores[:, None].astype(np.float64), same, weights)
    if slope <= 0:
        reason = "higher scores don't speak for one person on held-out identities"
        return Case(None, None, genuine, impostors, reason, *limits)
    return Case(float(slope), bias, genuine, impostors, "", *limits)


def _thresholds(
    scores: np.ndarray, people: np.ndarray
) -> tuple[list[float], list[tuple[float, float]]]:
    """`Case.thresholds` and `Case.intervals` of pairs of two people, [n] and [2, n]."""
    limits, intervals = list[float](), list[tuple[float, float]]()
    # From the highest on: those that a threshold accepts are the first.
    order = np.argsort(-scores, kind="stable")
    ordered, people = scores[order], np.unique(people[:, order], return_inverse=True)[1]
    people = people.reshape(2, -1)
    pairs = _by_person(people, people.max(initial=-1) + 1)
    while True:
        far = 10 ** (-(FIRST + len(limits)) / STEPS)
        if len(ordered) * far < ENOUGH * (1 - 1e-9):
            return limits, intervals
        above = ordered[allowed(far, len(ordered))]  # what must be rejected
        limits.append(float(np.nextafter(above, np.float32(np.inf))))
        accepted = people[:, : np.count_nonzero(ordered > above)]
        low, high = pair_interval(_by_person(accepted, pairs.shape[1]), pairs)
        intervals.append((low, high))


def _by_person(people: np.ndarray, count: int) -> np.ndarray:
    """Pairs of each person in either role, int [2, count]."""
    return np.stack([np.bincount(role, minlength=count) for role in people])


def calibrate(
    scores: np.ndarray, cases: np.ndarray, same: np.ndarray, people: np.ndarray
) -> dict[str, Case]:
    """The calibration of each face case that has pairs.

    scores: float [n]; cases: places in `CASES`, int [n]; same: bool [n]; people: numbers of their
    people, int [2, n].
    """
    parts = {name: cases == place for place, name in enumerate(CASES)}
    return {
        name: fit_case(scores[rows], same[rows], people[:, rows])
        for name, rows in parts.items()
        if rows.any()
    }
