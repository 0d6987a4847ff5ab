"""Stages whose blocks are shared among workers give the bytes of one process at equal threads."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.conftest import Project

pytestmark = [pytest.mark.slow, pytest.mark.finished("train-student")]

LAUNCHES = {
    "local": ["launch.workers=2"],
    "ray": ["launch.engine=ray", "launch.workers=2"],
}


def sets(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and "manifests" not in path.parts
    }


@pytest.mark.parametrize("launch", LAUNCHES)
def test_cache_and_features_are_those_of_one_process(launch: str, project: Project) -> None:
    blocks = sets("cache.block=5", "launch.threads=1")  # four blocks
    project.ok("all", "--update", *blocks)
    wanted = {name: digests(project.run / name) for name in ("targets.zarr", "features.zarr")}
    metrics = (project.run / "metrics.json").read_bytes()
    for name in wanted:
        shutil.rmtree(project.run / name)
    project.ok("teacher-cache", *blocks, *sets(*LAUNCHES[launch]))
    project.ok("eval", "--force", *blocks, *sets(*LAUNCHES[launch]))
    assert {name: digests(project.run / name) for name in wanted} == wanted
    assert (project.run / "metrics.json").read_bytes() == metrics


@pytest.mark.parametrize("launch", LAUNCHES)
def test_prepared_images_are_those_of_one_process(
    launch: str, project: Project, tmp_path: Path
) -> None:
    made = []
    for name, options in (("one", []), (launch, LAUNCHES[launch])):
        root = tmp_path / name
        result = project.command(
            "prepare",
            "--run",
            str(tmp_path / f"run-{name}"),
            "--config",
            str(project.config),
            *sets(
                f"data.root={root}",
                f"prepare.root={project.data}",
                f"prepare.parsing.labels={project.data / 'labels'}",
                "prepare.batch=3",
                "launch.threads=1",
                *options,
            ),
        )
        assert result.code == 0, result.err
        made.append({n: d for n, d in digests(root).items() if n != ".prepare/config.yaml"})
    assert made[0] == made[1]
    assert len(made[0]) > 50


@pytest.mark.parametrize("launch", LAUNCHES)
def test_students_of_a_sweep_are_those_of_one_process(launch: str, project: Project) -> None:
    sweep = ["--grid", "kd_loss.T=1,2", "--seeds", "1", *sets("train_student.max_steps=2")]
    project.ok("sweep", *sweep, *sets("launch.threads=1"))
    students = [*(project.run / "sweep").glob("*/student.safetensors")]
    wanted = {path: path.read_bytes() for path in students}
    assert len(wanted) == 2
    shutil.rmtree(project.run / "sweep")
    engine = [pair for pair in LAUNCHES[launch] if "engine" in pair]
    project.ok("sweep", *sweep, "--jobs", "2", *sets("launch.threads=1", *engine))
    assert {path: path.read_bytes() for path in students} == wanted
