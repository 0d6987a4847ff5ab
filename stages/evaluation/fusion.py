"""How much each stream counts where both are used: fitted on pairs of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

Block = Callable[[slice | np.ndarray], np.ndarray]
"""Some queries → their distances to the whole gallery, float32 [rows, G]."""
_PRIOR = 1.0
"""Precision of the normal prior of a weight of a similarity with unit variance: pairs that a line
separates would make weights infinite."""


@dataclass(frozen=True)
class Fusion:
    """The log-odds that two images show one person, from the similarities of their features.

    bias + face·s_face + body·s_body; bias_alone + body_alone·s_body where one of them has no face.
    No weight is negative.
    """

    face: float
    body: float
    bias: float
    body_alone: float
    bias_alone: float

    def facts(self) -> dict[str, float]:
        """As a weights file has it."""
        return asdict(self)

    def distances(self, face: Block, body: Block, asked: np.ndarray, shown: np.ndarray) -> Block:
        """Distances of both streams from those of each, 1 − s: float32, at least 0.

        asked, shown: which queries, and which images of the gallery, have a face: bool [Q], [G].
        The distance is the log-odds below those of equal features.
        """
        both, alone = self.face + self.body + self.bias, self.body_alone + self.bias_alone
        below = max(0.0, alone - both), max(0.0, both - alone)

        def block(rows: slice | np.ndarray) -> np.ndarray:
            of_body = body(rows)
            together = below[0] + self.face * face(rows) + self.body * of_body
            apart = below[1] + self.body_alone * of_body
            seen = asked[rows][:, None] & shown[None]
            return np.where(seen, together, apart).astype(np.float32)

        return block


def fit_fusion(face: np.ndarray, body: np.ndarray, seen: np.ndarray, same: np.ndarray) -> Fusion:
    """Fit by logistic regression on n pairs.

    Args:
        face, body: similarities of each stream, float [n].
        seen: whether both images have a face, bool [n].
        same: whether they show one person, bool [n].

    Raises:
        ValueError: no pair with faces shows one person, or none shows two.
    """
    if not (seen & same).any() or not (seen & ~same).any():
        raise ValueError("pairs of one person and of two, each with faces, are needed")
    bias, weights = _logistic(np.stack([face, body], 1)[seen], same[seen])
    # Without such pairs the body says without a face what it says in all pairs.
    lacking = ~seen if (~seen & same).any() and (~seen & ~same).any() else np.ones_like(seen)
    bias_alone, alone = _logistic(body[lacking][:, None], same[lacking])
    return Fusion(*map(float, (*weights, bias, *alone, bias_alone)))


def _logistic(inputs: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Bias and weights ≥ 0 of inputs [n, k]: a maximum of the posterior, by Newton's method.

    An input whose weight would be negative is left out.
    """
    used = np.ones(inputs.shape[1], bool)
    while True:
        bias, weights = _newton(inputs[:, used], labels)
        if (weights >= 0).all():
            found = np.zeros(len(used))
            found[used] = weights
            return bias, found
        used[np.flatnonzero(used)[weights.argmin()]] = False


def _newton(inputs: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-12
    design = np.column_stack([np.ones(len(inputs)), (inputs - mean) / scale]).astype(np.float64)
    prior = np.diag([0.0] + [_PRIOR] * inputs.shape[1])
    share = labels.mean()
    found = np.zeros(design.shape[1])
    found[0] = np.log(share / (1 - share))
    for _ in range(100):
        odds = 1 / (1 + np.exp(-design @ found))
        gradient = design.T @ (labels - odds) - prior @ found
        curvature = design.T @ (design * (odds * (1 - odds))[:, None]) + prior
        step = np.linalg.solve(curvature, gradient)
        found += step / max(1.0, np.abs(step).max())  # far away a whole step may go too far
        if np.abs(step).max() < 1e-10:
            break
    weights = found[1:] / scale
    return float(found[0] - weights @ mean), weights
