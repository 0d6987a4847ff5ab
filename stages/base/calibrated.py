"""What scores mean, as it is kept with a student; `stages.metrics.calibration` fits and uses it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, NonNegativeInt

Share = Annotated[float, Field(ge=0, le=1)]
STEPS, FIRST = 10, 3
"""Thresholds for each power of ten of the false accept rate, and which is the first."""


@dataclass(frozen=True)
class Case:
    """What a score means for pairs of which both, one or none has a face.

    The log-likelihood ratio of one person against two is slope·score + bias.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    slope: FiniteFloat | None
    """Above 0; with `bias` None where it can't be had, for a `reason`."""
    bias: FiniteFloat | None
    genuine: NonNegativeInt
    """Pairs of one person that it was fitted on."""
    impostors: NonNegativeInt
    """Pairs of two people."""
    reason: str
    thresholds: list[FiniteFloat]
    """The lowest scores that accept at most a share of 10^(−3/10), 10^(−4/10) … of the pairs of two
    people, as far down as at least 10 may be accepted."""
    intervals: list[tuple[Share, Share]] = field(default_factory=list)
    """The 95 % interval, over held-out people, of the rate of each threshold; empty in students of
    before."""

    def __post_init__(self) -> None:
        if (self.slope is None) != (self.bias is None):
            raise ValueError("slope and bias go together")
        if self.slope is not None and self.slope <= 0:
            raise ValueError(f"slope must be above 0, is {self.slope}")
        if any(low > high for low, high in pairwise(self.thresholds)):
            raise ValueError("thresholds must not fall")
        if len(self.intervals) not in (0, len(self.thresholds)):
            raise ValueError(f"{len(self.intervals)} intervals of {len(self.thresholds)} rates")

    @property
    def lowest_far(self) -> float:
        """The lowest false accept rate that the pairs support; inf where they support none."""
        known = len(self.thresholds)
        return 10 ** (-(FIRST + known - 1) / STEPS) if known else math.inf

    def threshold(self, far: float) -> float | None:
        """The lowest score that accepts at most this share of pairs of two people.

        Between two kept thresholds it is on the line between them, by the logarithm of the rate.
        None where the rate is lower than the pairs support.
        """
        place, last = _place(far), len(self.thresholds) - 1
        if place > last:
            return None
        low, high = self.thresholds[int(place)], self.thresholds[min(int(place) + 1, last)]
        return low + (place - int(place)) * (high - low)

    def interval(self, far: float) -> tuple[float, float] | None:
        """The 95 % interval of the accept rate at this threshold: people like those held out.

        Of the kept threshold that is at or below the rate. None where `threshold` is, and where it
        isn't known.
        """
        place = math.ceil(_place(far))
        return self.intervals[place] if place < len(self.intervals) else None


def _weights(weights: dict[str, float]) -> dict[str, float]:
    names = ("face", "body", "bias", "body_alone", "bias_alone")
    if weights.keys() != {*names}:
        raise ValueError(f"must be {', '.join(names)}, found {', '.join(weights) or 'nothing'}")
    return weights


def _place(far: float) -> float:
    """Where a rate is among the kept thresholds, from 0 on."""
    place = max(-math.log10(far) * STEPS - FIRST, 0.0)
    return float(round(place)) if abs(place - round(place)) < 1e-9 else place


StreamWeights = Annotated[dict[str, FiniteFloat], AfterValidator(_weights)]
"""How much each stream counts in a score, as `metrics.fusion.Fusion` has it."""

Calibrated = dict[str, dict[str, Case]]
"""Name of a score (`metrics.calibration.calibration_name`) → face case → what it means. A case that
is absent had no pairs."""
