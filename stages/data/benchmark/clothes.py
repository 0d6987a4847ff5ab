"""What clothes tell of identity, from the facts of the images alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd


def clothes_nats(table: pd.DataFrame) -> float:
    """Mutual information of `pid` and `clothes` over the images of a table, in nats.

    By how much an image's outfit reduces the uncertainty about who it is: ln(all outfits / outfits
    of a person) where everyone wears theirs equally often.
    """
    counts = pd.crosstab(table["pid"], table["clothes"]).to_numpy()
    share = counts / counts.sum()
    independent = share.sum(1, keepdims=True) * share.sum(0)
    return float((share * np.log(np.where(share > 0, share / independent, 1))).sum())


def clothes_distances(query: pd.DataFrame, gallery: pd.DataFrame) -> Callable[[slice], np.ndarray]:
    """Distances of one who reads clothes perfectly, and nothing else: 0 of the same outfit, else 1.

    For `rank_gallery`, whose numbers are expectations over ties.
    """
    query_outfit, gallery_outfit = query["clothes"].to_numpy(), gallery["clothes"].to_numpy()
    return lambda rows: (query_outfit[rows, None] != gallery_outfit).astype(np.float32)
