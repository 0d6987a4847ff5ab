"""Evaluation protocols: which gallery pictures a query must not be compared with.

To add one: write its function and name it in `PROTOCOLS`; tests/test_metrics.py then holds it
against a brute-force version by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Protocol:
    """A rule under its own name, in words that are printed and saved with every number."""

    rule: str
    removed: Callable[[pd.Series, pd.DataFrame], np.ndarray]
    """(a query's row, the gallery's table) → bool [G], gallery pictures taken out."""


def _market(query: pd.Series, gallery: pd.DataFrame) -> np.ndarray:
    same_pid = gallery["pid"].to_numpy() == query["pid"]
    return same_pid & (gallery["camid"].to_numpy() == query["camid"])


PROTOCOLS: dict[str, Protocol] = {
    "market": Protocol(
        "Market rule: for each query, gallery pictures of the same identity from the same camera "
        "are removed; a query without a positive left is not counted",
        _market,
    ),
}
