"""A tiny run gives the weights, targets, features and metrics that are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests import values


def test_a_tiny_run_gives_the_values_that_are_kept(tmp_path: Path) -> None:
    values.write(tmp_path / "values.npz")
    with np.load(tmp_path / "values.npz") as file, np.load(values.KEPT) as kept:
        assert not values.differences(dict(file), dict(kept), tolerance=1e-5)


def test_a_value_that_differs_is_named() -> None:
    kept = {"a": np.array([1.0, 2.0]), "b": np.array(["x"])}
    assert not values.differences(kept, kept, 0)
    assert values.differences(kept | {"a": np.array([1.0, 2.1])}, kept, 1e-5) == [
        "a differs by up to 0.1"
    ]
    assert len(values.differences({"b": np.array(["y"]), "c": np.zeros(1)}, kept, 1e-5)) == 3
