"""Nothing of clothes or cameras reaches a network: they are facts for the evaluation alone."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from deskpro.cache.reader import MappedReader
from deskpro.stages.base.names import Name
from deskpro.stages.data.layouts import Layout
from deskpro.stages.data.listings import Listing
from tests.conftest import Project


@pytest.mark.finished("eval")
def test_weights_targets_and_features_are_the_same_whatever_clothes_and_cameras_are(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = Layout.parse

    def other(self: Layout, path: str, lists: Listing | None = None) -> Name | None:
        name = parse(self, path, lists)
        number = zlib.crc32(path.encode())
        return name and name._replace(camid=7 + number % 5, clothes=f"outfit {number}")

    before = project.run.rename(project.run.with_name("before"))
    monkeypatch.setattr(Layout, "parse", other)
    for stage in ("train-teacher", "teacher-cache", "train-student", "eval"):
        project.ok(stage)
    for name in ("teacher", "student"):
        old, new = (load_file(run / f"{name}.safetensors") for run in (before, project.run))
        assert old.keys() == new.keys()
        for key, values in old.items():
            np.testing.assert_array_equal(values, new[key], err_msg=f"{name}: {key}")
    for place, group in (
        ("targets.zarr", "teachers/default/logits"),
        ("features.zarr", "features"),
    ):
        old, new = (MappedReader(run / place, group) for run in (before, project.run))
        rows = range(old.schema.samples)
        for field, values in old.read([*rows], [0] * len(rows)).items():
            np.testing.assert_array_equal(values, new.read([*rows], [0] * len(rows))[field])
    assert (before / "queries.csv").read_text() != (project.run / "queries.csv").read_text()
