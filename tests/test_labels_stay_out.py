"""Nothing of clothes, cameras or times reaches a network: these are for the evaluation alone."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from deskpro.cache.reader import MappedReader
from deskpro.stages.base.names import Name
from deskpro.stages.data.layouts import Layout
from deskpro.stages.data.listings import Listing
from deskpro.stages.evaluation import gaps
from deskpro.stages.reporting.metrics_file import Metrics
from tests.conftest import Project


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_weights_targets_and_features_are_the_same_whatever_clothes_cameras_and_times_are(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = Layout.parse

    def other(self: Layout, path: str, lists: Listing | None = None) -> Name | None:
        name = parse(self, path, lists)
        number = zlib.crc32(path.encode())
        facts = {"clothes": f"outfit {number}", "time": f"{number % 9000}"}
        return name and name._replace(camid=7 + number % 5, **facts)

    before = project.run.rename(project.run.with_name("before"))
    monkeypatch.setattr(Layout, "parse", other)
    monkeypatch.setattr(gaps, "LEAST", 2)
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
    reports = [json.loads((run / "metrics.json").read_text()) for run in (before, project.run)]
    old, new = ([*report["protocols"]["market"]["streams"].values()] for report in reports)
    assert not any("gaps" in numbers for numbers in old)
    for numbers in new:  # of each stream of a student, as of features in a file
        first = numbers["gaps"]["rows"][0]
        assert (first["mAP"], first["queries"]) == (numbers["mAP"], numbers["queries"])
    assert Metrics.model_validate(reports[1])
