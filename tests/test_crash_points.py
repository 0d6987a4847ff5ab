"""Checkpoints and evaluation, stopped at every write: the same call gives the same bytes.

The cache's writer and preparation have such tests in test_cache.py and test_prepare.py.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from deskpro.pipeline import config, runner
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.training_options import Checkpointing
from deskpro.stages.training.checkpoints import Checkpoints
from tests.conftest import Project
from tests.crash import crashes


def digests(folder: Path) -> dict[str, str]:
    """Of every file that is not being written, by path; manifests and logs tell times."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix not in (".lock", ".log")
        and ".partial" not in path.name
        and "manifests" not in path.parts
    }


def test_checkpoints_at_every_crash_point(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    states = {
        step: {"steps": step, "network": {"w": torch.full((4,), float(step))}} for step in (1, 2, 3)
    }

    def opened() -> Checkpoints:
        return Checkpoints(folder, {"lr": 0.1}, Checkpointing(every=1, keep=2))

    def start() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for step in (1, 2):
            opened().save(step, states[step])

    def call() -> None:
        opened().save(3, states[3])

    start()
    call()
    wanted, points = digests(folder), 0
    for point in crashes(start, call, tmp_path):
        found = opened().load()
        assert found is not None, point
        assert found["steps"] in (2, 3), point
        assert torch.equal(found["network"]["w"], states[found["steps"]]["network"]["w"])
        call()
        assert digests(folder) == wanted, point
        points += 1
    assert points >= 3


@pytest.mark.slow
@pytest.mark.finished("train-student")
def test_evaluation_at_every_crash_point(project: Project, tmp_path: Path) -> None:
    finished, options = tmp_path / "finished", config.load(project.config)
    shutil.copytree(project.run, finished)

    def start() -> None:
        shutil.rmtree(project.run)
        shutil.copytree(finished, project.run)

    def call() -> None:
        runner.run_stage("eval", options, RunFolder(project.run))

    call()
    wanted, points = digests(project.run), 0
    for point in crashes(start, call, project.run):
        call()
        assert digests(project.run) == wanted, point
        points += 1
    assert points > 20


@pytest.mark.slow
@pytest.mark.finished("train-teacher")
def test_a_teacher_is_added_at_every_crash_point(project: Project, tmp_path: Path) -> None:
    """The targets of the cache keep their bytes; the same command ends with the same bytes."""
    teacher = tmp_path / "other.safetensors"
    shutil.copy(project.run / "teacher.safetensors", teacher)
    small = ["cache.views=1", "cache.block=32"]
    runner.run_stage("teacher-cache", config.load(project.config, small), RunFolder(project.run))
    options = config.load(project.config, [*small, f"teachers.other.weights={teacher}"])
    root, finished = project.run / "targets.zarr", tmp_path / "finished"
    shutil.copytree(project.run, finished)
    before = digests(root)

    def start() -> None:
        shutil.rmtree(project.run)
        shutil.copytree(finished, project.run)

    def call() -> None:
        runner.run_stage("teacher-cache", options, RunFolder(project.run))

    call()
    wanted, points = digests(root), 0
    assert wanted.items() > before.items()
    for point in crashes(start, call, root):
        found = digests(root)
        assert {name: found.get(name) for name in before} == before, point
        call()
        assert digests(root) == wanted, point
        points += 1
    assert points > 20
