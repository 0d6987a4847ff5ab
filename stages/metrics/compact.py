"""Descriptors in fewer bytes: fewer numbers, and numbers of fewer bytes."""

from __future__ import annotations

import numpy as np

STORAGE = ("float32", "float16", "int8")
"""How the numbers of a descriptor can be kept."""


def principal_directions(products: np.ndarray) -> np.ndarray:
    """Directions in which vectors are long, the longest first: float32 [L, L], orthonormal columns.

    The first of them keep dot products best (Eckart & Young, 1936), all of them keep each one.
    Vectors are neither centred nor whitened: that would make other cosines of them.

    products: XᵀX of vectors X [N, L], float64.
    """
    _, found = np.linalg.eigh(products)
    return found[:, ::-1].astype(np.float32)


def projected(vectors: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Vectors [N, L] along directions [L, dim]: float32 [N, dim], of length 1, or 0 as before."""
    return unit(vectors @ directions)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; rows of 0 stay."""
    floats = vectors.astype(np.float32)
    lengths = np.linalg.norm(floats, axis=1, keepdims=True)
    return floats / np.where(lengths > 0, lengths, 1)


def stored(vectors: np.ndarray, storage: str) -> np.ndarray:
    """Vectors [N, L] as a `STORAGE`. int8: each row is scaled so that its largest number is 127."""
    if storage != "int8":
        return vectors.astype(storage)
    largest = np.abs(vectors).max(1, keepdims=True, initial=0)
    return np.rint(vectors * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)


def restored(part: np.ndarray) -> np.ndarray:
    """A part of stored vectors, float [N, L]: of int8 each row has length 1 again, or 0.

    float64 stays: a gallery scores equal pictures equally by it.
    """
    if part.dtype == np.int8:
        return unit(part)
    return part.astype(np.promote_types(part.dtype, np.float32), copy=False)
