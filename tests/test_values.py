"""A tiny run gives the weights, targets, features and metrics that are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests import values


def test_a_tiny_run_gives_the_values_that_are_kept(finished_run: Callable[[str], Path]) -> None:
    with np.load(values.KEPT) as file:
        kept = {name: file[name] for name in file}
    found = values.collect(finished_run("eval"))
    assert not values.differences(found, kept, tolerance=1e-5)


def test_a_value_that_differs_is_named() -> None:
    kept = {"a": np.array([1.0, 2.0]), "b": np.array(["x"])}
    assert not values.differences(kept, kept, 0)
    assert values.differences(kept | {"a": np.array([1.0, 2.1])}, kept, 1e-5) == [
        "a differs by up to 0.1"
    ]
    assert len(values.differences({"b": np.array(["y"]), "c": np.zeros(1)}, kept, 1e-5)) == 3
