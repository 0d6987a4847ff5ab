"""How sure a mean is: of queries by bootstrap and a paired test, of trainings by Student's t.

The queries of one identity are alike, so identities are drawn, not queries (cluster bootstrap;
Field & Welsh, "Bootstrapping clustered data", JRSS B 2007).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

DRAWS = 2000
"""Resamples: the ends of a 95 % interval then vary by a few hundredths of its width."""
FLIPS = 10_000
"""Random signs of a test, a multiple of the 500 that are drawn at a time."""


def resampled_means(values: np.ndarray, identities: npt.ArrayLike, seed: int = 0) -> np.ndarray:
    """The means of `DRAWS` resamples of identities, with replacement and with all their queries.

    Args:
        values: of queries, [n] or [n, k].
        identities: of the same queries, any type that sorts, [n]. With the same identities the
            same resamples are drawn for every column and every array.

    Returns:
        float64 [DRAWS] or [DRAWS, k].
    """
    names, own = np.unique(identities, return_inverse=True)
    counts = np.bincount(own)
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, own, values)
    resamples = _resamples(len(names), seed)
    return np.asarray([times @ sums / (times @ counts) for times in resamples])


@functools.lru_cache(2)
def _resamples(identities: int, seed: int) -> np.ndarray:
    """How often each of some identities is drawn, int32 [DRAWS, identities].

    Kept for the next measure of the same queries: the drawing takes most of the time.
    """
    found = np.empty((DRAWS, identities), np.int32)
    for draw in range(DRAWS):
        rows = np.random.default_rng([seed, draw]).integers(0, identities, identities)
        found[draw] = np.bincount(rows, minlength=identities)
    return found


def interval(values: np.ndarray, identities: npt.ArrayLike, seed: int = 0) -> list[float]:
    """The 95 % percentile interval of the mean of n values: [low, high]."""
    low, high = percentiles(resampled_means(values, identities, seed=seed))
    return [float(low), float(high)]


def percentiles(means: np.ndarray) -> np.ndarray:
    """The ends of the 95 % percentile interval of resampled means: [draws, …] → [2, …]."""
    return np.quantile(means, (0.025, 0.975), axis=0)


def pair_interval(accepted: np.ndarray, pairs: np.ndarray) -> list[float]:
    """The 95 % interval of the share of accepted pairs of two people: [low, high].

    Both people of a pair are of a sample, so each person is left out with all pairs in either role
    (jackknife); Student's t, on the scale of log-odds. Where none is accepted, or each, the other
    end is 3 of the number of people (the rule of three, as if each person had one pair).

    Args:
        accepted, pairs: of each person as query, and as gallery, numbers [2, people].
    """
    there = pairs.sum(0) > 0  # of the others nothing is known
    accepted, pairs = accepted[:, there], pairs[:, there]
    people, total, hits = pairs.shape[1], pairs[0].sum(), accepted[0].sum()
    rest = total - pairs.sum(0)
    if people < 3 or not rest.all():
        return [0.0, 1.0]
    if hits in (0, total):
        far = min(1.0, 3 / people)
        return [0.0, far] if not hits else [1 - far, 1.0]
    rates = (hits - accepted.sum(0)) / rest
    rate = hits / total
    error = math.sqrt((people - 1) / people * ((rates - rates.mean()) ** 2).sum())
    half = t_quantile(0.95, people - 1) * error / (rate * (1 - rate))
    middle = math.log(rate / (1 - rate))
    return [_share(middle - half), _share(middle + half)]


def combined(share: float, *intervals: npt.ArrayLike) -> list[float]:
    """The interval of a share of one sample that is told by others, too: [low, high].

    As of an accept rate on test at a threshold of held-out people, either of which may be off:
    half-widths on the scale of log-odds add in squares. Where one reaches 0 or 1 there is no such
    width, and the interval is the smallest that holds all of them.

    Args:
        share: 0..1.
        intervals: of each sample, its own first; low and high, around the share that it has.
            Of the others the half-width is half of their width.
    """
    ends = np.array([[*np.asarray(each, float)] for each in intervals])
    if not 0 < share < 1:
        return [float(end) for end in ends[0]]
    if not ((ends > 0) & (ends < 1)).all():
        return [float(ends.min()), float(ends.max())]
    (low, high), *others = (_log_odds(np.asarray(each, float)) for each in intervals)
    middle = float(_log_odds(np.asarray(share)))
    more = sum(((other[1] - other[0]) / 2) ** 2 for other in others)
    below, above = math.sqrt((middle - low) ** 2 + more), math.sqrt((high - middle) ** 2 + more)
    return [_share(middle - below), _share(middle + above)]


def _log_odds(shares: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(shares) - np.log1p(-shares)


def _share(log_odds: float) -> float:
    return 1 / (1 + math.exp(min(-log_odds, 700.0)))


def sign_flip_test(differences: np.ndarray, identities: npt.ArrayLike) -> float:
    """Two-sided p of a mean paired difference, [n], under `FLIPS` random signs of identities.

    Where nothing differs it is 1. The observed arrangement counts as one of the draws, so p is
    never 0 (Phipson & Smyth, 2010).
    """
    changed = np.bincount(np.unique(identities, return_inverse=True)[1], differences)
    changed = changed[changed != 0]
    if not len(changed):
        return 1.0
    observed, extreme = abs(changed.sum()), 0
    for start in range(0, FLIPS, 500):
        random = np.random.default_rng([0, start])
        signs = random.choice((-1.0, 1.0), (500, len(changed)))
        # Sums of the same numbers in another order may differ in their last digits.
        extreme += int(np.count_nonzero(np.abs(signs @ changed) >= observed * (1 - 1e-12)))
    return (extreme + 1) / (FLIPS + 1)


def t_interval(values: npt.ArrayLike, level: float = 0.95) -> list[float]:
    """The interval of a mean of independent values by Student's t: [low, high]; nan for one."""
    found = np.asarray(values, float)
    if len(found) < 2:
        return [math.nan, math.nan]
    half = t_quantile(level, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found))
    return [float(found.mean() - half), float(found.mean() + half)]


def paired_t(differences: npt.ArrayLike) -> float:
    """Two-sided p of a mean paired difference by Student's t; nan for fewer than two.

    Where all differences are equal it is 0, or 1 if they are 0.
    """
    found = np.asarray(differences, float)
    if len(found) < 2:
        return math.nan
    if found.min() == found.max():
        return float(found[0] == 0)
    df = len(found) - 1
    t = abs(found.mean()) * math.sqrt(len(found)) / found.std(ddof=1)
    return min(max(1 - _t_mass(math.atan(t / math.sqrt(df)), df), 0.0), 1.0)


def holm(values: npt.ArrayLike) -> np.ndarray:
    """p values adjusted for their number (Holm, 1979, step-down), [n]; nan stays and isn't counted.

    Rejecting what is below a level then errs in any of the tests no more often than the level says.
    """
    adjusted = np.asarray(values, float).copy()
    order = np.argsort(adjusted, kind="stable")  # nan comes last
    order = order[: np.count_nonzero(~np.isnan(adjusted))]
    times = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(times * adjusted[order]), 1)
    return adjusted


def t_quantile(level: float, df: int) -> float:
    """The t within which Student's distribution of `df` degrees of freedom has `level` of its mass.

    Halves the angle atan(t / √df), of which that mass is a finite sum.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _t_mass(angle, df) < level else (low, angle)
    return math.tan(low) * math.sqrt(df)


def _t_mass(angle: float, df: int) -> float:
    """P(|T| < √df tan(angle)) (Abramowitz & Stegun, 26.7.3 and 26.7.4)."""
    odd = df % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, df, 2):
        total += term
        term *= k / (k + 1) * math.cos(angle) ** 2
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
