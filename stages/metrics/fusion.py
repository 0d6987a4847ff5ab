"""How similar two images are by both streams of a student: fixed weights, or fitted on pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from deskpro.stages.base.errors import InputError

Block = Callable[[slice | np.ndarray], np.ndarray]
"""Some queries → their distances to the whole gallery, float32 [rows, G]."""
_PRIOR = 1.0
"""Precision of the normal prior of a weight of a similarity with unit variance: pairs that a line
separates would make weights infinite."""


@dataclass(frozen=True)
class Fusion:
    """The score of two images from the similarities of their features, stream by stream.

    bias + face·s_face + body·s_body; bias_alone + body_alone·s_body where one of them has no face.
    A fitted score is the log-odds that both show one person. No weight is negative.
    """

    face: float
    body: float
    bias: float
    body_alone: float
    bias_alone: float

    @classmethod
    def fixed(cls, face: float) -> Fusion:
        """The face counts `face`, in 0..1, the body the rest; s_face is 0 without a face."""
        return cls(face, 1 - face, 0.0, 1 - face, 0.0)

    def facts(self) -> dict[str, float]:
        """As a weights file has it."""
        return asdict(self)

    @property
    def streams(self) -> tuple[str, ...]:
        """Those that count at all."""
        weights = {"face": self.face, "body": self.body + self.body_alone}
        return tuple(stream for stream, weight in weights.items() if weight)

    @property
    def highest(self) -> float:
        """The score of equal features."""
        return max(self.face + self.body + self.bias, self.body_alone + self.bias_alone)

    def below(self, face: np.ndarray, body: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """How far scores lie below `highest`: float32, at least 0 for distances ≥ 0.

        face, body: distances of each stream, 1 − s, of some pairs, float32; seen: which of them
        have two faces, bool. All of one shape.
        """
        both, alone = self.face + self.body + self.bias, self.body_alone + self.bias_alone
        together = max(0.0, alone - both) + self.face * face + self.body * body
        apart = max(0.0, both - alone) + self.body_alone * body
        return np.where(seen, together, apart).astype(np.float32)

    def scores(self, face: np.ndarray, body: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Scores from similarities of each stream, float32 [Q, G]; seen: as for `below`."""
        return np.float32(self.highest) - self.below(1 - face, 1 - body, seen)

    def distances(
        self, face: Block, body: Block, query_face: np.ndarray, gallery_face: np.ndarray
    ) -> Block:
        """`below`, a block of queries at a time, in the memory of the distances of both streams.

        query_face, gallery_face: which images have a face, bool [Q], [G].
        """

        def block(rows: slice | np.ndarray) -> np.ndarray:
            of_face, found = face(rows), body(rows).astype(np.float32, copy=False)
            for i, query in enumerate(query_face[rows]):
                found[i] = self.below(of_face[i], found[i], gallery_face & query)
            return found

        return block


def choose_fusion(
    fitted: Mapping[str, float] | None, face_weight: float | Literal["fitted"]
) -> Fusion:
    """The fusion that `eval.face_weight` asks for; fitted: that of the student, if it has one.

    Raises:
        InputError: it is to be the fitted one, and the student has none.
    """
    if face_weight != "fitted":
        return Fusion.fixed(face_weight)
    if fitted is None:
        raise InputError(
            "eval.face_weight: fitted, but the student's weights of its streams were not fitted: "
            "no identities were held out in its training. Train with --set data.validation=0.1, or "
            "give a number, such as --set eval.face_weight=0.5"
        )
    return Fusion(**fitted)


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
    # Without such pairs the body counts without a face as it does in all pairs.
    faceless = ~seen if (~seen & same).any() and (~seen & ~same).any() else np.ones_like(seen)
    bias_alone, alone = _logistic(body[faceless][:, None], same[faceless])
    return Fusion(*map(float, (*weights, bias, *alone, bias_alone)))


def _logistic(inputs: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Bias and weights ≥ 0 of inputs [n, k]: a maximum of the posterior, by Newton's method.

    An input whose weight would be negative is left out.
    """
    used = np.ones(inputs.shape[1], bool)
    while True:
        bias, weights = fit_logistic(inputs[:, used], labels)
        if (weights >= 0).all():
            found = np.zeros(len(used))
            found[used] = weights
            return bias, found
        used[np.flatnonzero(used)[weights.argmin()]] = False


def fit_logistic(
    inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Bias and weights [k] of inputs [n, k], by Newton's method; weights: of the rows, [n]."""
    counts = np.ones(len(inputs)) if weights is None else weights
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-12
    design = np.column_stack([np.ones(len(inputs)), (inputs - mean) / scale]).astype(np.float64)
    prior = np.diag([0.0] + [_PRIOR] * inputs.shape[1])
    share = np.average(labels, weights=counts)
    found = np.zeros(design.shape[1])
    found[0] = np.log(share / (1 - share))
    for _ in range(100):
        odds = 1 / (1 + np.exp(-design @ found))
        gradient = design.T @ (counts * (labels - odds)) - prior @ found
        curvature = design.T @ (design * (counts * odds * (1 - odds))[:, None]) + prior
        step = np.linalg.solve(curvature, gradient)
        found += step / max(1.0, np.abs(step).max())  # far away a whole step may go too far
        if np.abs(step).max() < 1e-10:
            break
    slopes = found[1:] / scale
    return float(found[0] - slopes @ mean), slopes
