"""Descriptors in fewer bytes: what is kept of their cosines, and in which form they are given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskpro import Features
from deskpro.stages.base.errors import InputError
from deskpro.stages.metrics.compact import (
    STORAGE,
    principal_directions,
    projected,
    restored,
    stored,
    unit,
)


def some_vectors(count: int, length: int, seed: int) -> np.ndarray:
    """Of length 1, longer in some directions; the first is missing."""
    random = np.random.default_rng(seed)
    found = unit(random.normal(0.3, 1, (count, length)) * random.uniform(0, 2, length))
    found[:1] = 0
    return found


@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 99), st.data())
def test_directions_are_those_of_the_singular_values(
    count: int, length: int, seed: int, data: st.DataObject
) -> None:
    vectors = some_vectors(count, length, seed)
    directions = principal_directions(vectors.T.astype(np.float64) @ vectors)
    np.testing.assert_allclose(directions.T @ directions, np.eye(length), atol=1e-5)
    whole = projected(vectors, directions)
    np.testing.assert_allclose(whole @ whole.T, vectors @ vectors.T, atol=1e-5)
    dim = data.draw(st.integers(1, length))
    _, values, _ = np.linalg.svd(vectors.astype(np.float64))
    kept = (vectors @ directions[:, :dim]).astype(np.float64)
    lost = np.linalg.norm(vectors @ vectors.T - kept @ kept.T)  # the least of all of rank dim
    assert lost == pytest.approx(np.linalg.norm(values[dim:] ** 2), abs=1e-4)


@given(st.integers(0, 9), st.integers(1, 300), st.integers(0, 99))
def test_stored_vectors_have_nearly_the_same_cosines(count: int, length: int, seed: int) -> None:
    vectors = some_vectors(count, length, seed)
    for storage, bound in zip(STORAGE, (1e-6, 1e-3, 1.1 / 127), strict=True):
        kept = stored(vectors, storage)
        assert kept.dtype == storage
        again = restored(kept)
        assert again.dtype == np.float32
        assert not again[:1].any()
        # A number is off by half a step of max/127, and max is at most the length, 1.
        least = 1 - length * (bound / 2) ** 2 - 1e-3 * (storage != "float32")
        assert ((again * vectors).sum(1)[1:] >= least - 1e-5).all()


def test_features_are_stored_once_and_in_a_storage_that_there_is() -> None:
    features = Features(some_vectors(3, 8, 0), np.array([False, True, True]))
    small = features.stored("int8")
    assert small.vectors.nbytes * 4 == features.vectors.nbytes
    np.testing.assert_array_equal(small[1:].has_face, [True, True])
    for wrong, storage in ((features, "int4"), (small, "float16")):
        with pytest.raises(InputError, match="must be one of float32, float16, int8, of vectors"):
            wrong.stored(storage)
