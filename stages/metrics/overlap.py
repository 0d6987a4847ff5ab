"""How well a map finds a region of the same image."""

from __future__ import annotations

import numpy as np


def highest(values: np.ndarray, count: int) -> np.ndarray:
    """How much each position belongs to the `count` of highest value: float64, 0..1, `values`'
    shape, with the sum `count`.

    Positions of equal value at the edge share what is left: each is as likely to be among them.
    """
    flat = values.ravel()
    chosen = np.zeros(flat.shape)
    if count:
        edge = np.partition(flat, len(flat) - count)[len(flat) - count]
        above, level = flat > edge, flat == edge
        chosen[above] = 1
        chosen[level] = (count - np.count_nonzero(above)) / np.count_nonzero(level)
    return chosen.reshape(values.shape)


def region_iou(values: np.ndarray, region: np.ndarray) -> float:
    """Intersection over union of a region and the equally many positions of highest value.

    Both areas are equal, so the scale of the values doesn't count, and a map gains nothing by
    being high everywhere. Equal values intersect as they would on average in random order. A map
    that is the same everywhere has `uniform_iou`.

    Args:
        values: float [H, W]; region: bool [H, W].

    Returns:
        0..1; nan where the region is empty.
    """
    area = int(np.count_nonzero(region))
    if not area:
        return float("nan")
    common = float(highest(values, area)[region].sum())
    return common / (2 * area - common)


def uniform_iou(share: float) -> float:
    """`region_iou` of a map that is the same everywhere, for a region of so much of the image."""
    return share / (2 - share) if share else float("nan")
