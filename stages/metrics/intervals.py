"""How sure a mean over queries is: bootstrap intervals, and a paired test of two means.

The queries of one identity are alike, so identities are drawn, not queries (cluster bootstrap;
Field & Welsh, "Bootstrapping clustered data", JRSS B 2007).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DRAWS = 2000
"""Resamples: the ends of a 95 % interval then vary by a few hundredths of its width."""


def resampled_means(
    values: np.ndarray, identities: npt.ArrayLike, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """The means of resamples of identities, with replacement and with all their queries.

    Args:
        values: of queries, [n] or [n, k].
        identities: of the same queries, any type that sorts, [n]. With the same identities the
            same resamples are drawn for every column and every array.

    Returns:
        float64 [draws] or [draws, k].
    """
    names, own = np.unique(identities, return_inverse=True)
    counts = np.bincount(own)
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, own, values)
    means = []
    for draw in range(draws):
        rows = np.random.default_rng([seed, draw]).integers(0, len(names), len(names))
        times = np.bincount(rows, minlength=len(names))
        means.append(times @ sums / (times @ counts))
    return np.asarray(means)


def interval(values: np.ndarray, identities: npt.ArrayLike, seed: int = 0) -> list[float]:
    """The 95 % percentile interval of the mean of n values: [low, high]."""
    means = resampled_means(values, identities, seed=seed)
    return [float(end) for end in np.quantile(means, (0.025, 0.975))]


def sign_flip_test(
    differences: np.ndarray,
    identities: npt.ArrayLike,
    draws: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p of a mean paired difference, [n], under random signs of identities.

    Where nothing differs it is 1. The observed arrangement counts as one of the draws, so p is
    never 0 (Phipson & Smyth, 2010).
    """
    changed = np.bincount(np.unique(identities, return_inverse=True)[1], differences)
    changed = changed[changed != 0]
    if not len(changed):
        return 1.0
    observed, extreme = abs(changed.sum()), 0
    for start in range(0, draws, 500):
        random = np.random.default_rng([seed, start])
        signs = random.choice((-1.0, 1.0), (min(500, draws - start), len(changed)))
        # Sums of the same numbers in another order may differ in their last digits.
        extreme += int(np.count_nonzero(np.abs(signs @ changed) >= observed * (1 - 1e-12)))
    return (extreme + 1) / (draws + 1)
