"""How sure a mean over queries is: bootstrap intervals, and a paired test of two means."""

from __future__ import annotations

import numpy as np

DRAWS = 2000
"""Resamples: the ends of a 95 % interval then vary by a few hundredths of its width."""


def resampled_means(values: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """The means of resamples with replacement: [n] or [n, k] → float64 [draws] or [draws, k].

    The same resamples of rows are used for every column, and for every array of the same length.
    """
    count = len(values)
    means = []
    for draw in range(draws):
        rows = np.random.default_rng([seed, draw]).integers(0, count, count)
        means.append(np.bincount(rows, minlength=count) @ values / count)
    return np.asarray(means)


def interval(values: np.ndarray, seed: int = 0) -> list[float]:
    """The 95 % percentile interval of the mean of n values: [low, high]."""
    return [float(end) for end in np.quantile(resampled_means(values, seed=seed), (0.025, 0.975))]


def sign_flip_test(differences: np.ndarray, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of a mean paired difference, [n], under random signs.

    Where nothing differs it is 1. The observed arrangement counts as one of the draws, so p is
    never 0 (Phipson & Smyth, 2010).
    """
    changed = differences[differences != 0]
    if not len(changed):
        return 1.0
    observed, extreme = abs(changed.sum()), 0
    for start in range(0, draws, 500):
        random = np.random.default_rng([seed, start])
        signs = random.choice((-1.0, 1.0), (min(500, draws - start), len(changed)))
        # Sums of the same numbers in another order may differ in their last digits.
        extreme += int(np.count_nonzero(np.abs(signs @ changed) >= observed * (1 - 1e-12)))
    return (extreme + 1) / (draws + 1)
