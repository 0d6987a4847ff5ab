"""Streams that are trained apart and joined."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.testing import assert_close

from deskpro.pipeline import config
from deskpro.pipeline.runner import run_stage
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.join_streams import JoinStreams
from deskpro.stages.models.weights import load_student
from deskpro.stages.train_student import TrainStudent
from tests.conftest import Project

STREAMS = ("face", "body")


WITHOUT_TARGETS = ("kd_loss.enable=false", "mse.mse_weight=0")


def joined(project: Project, folder: Path, *settings: str) -> RunFolder:
    """Both streams trained apart from the run's cache, and joined."""
    options = config.load(project.config, settings)
    parts = {stream: RunFolder(folder / stream, project.run) for stream in STREAMS}
    for stream, part in parts.items():
        run_stage(TrainStudent(options, part, only=stream), options, part)
    home = RunFolder(folder / "joined", project.run)
    weights = {stream: part.student for stream, part in parts.items()}
    run_stage(JoinStreams(options, home, weights), options, home)
    return home


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
@pytest.mark.parametrize("settings", [(), WITHOUT_TARGETS])
def test_streams_that_are_trained_apart_are_those_trained_together(
    project: Project, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    apart = joined(project, tmp_path, *settings)
    together = RunFolder(tmp_path / "together", project.run)
    run_stage("train-student", config.load(project.config, settings), together)
    found, info = load_student(apart.student)
    wanted, other = load_student(together.student)
    assert info == other
    # The sum of the losses is rounded; the gradients of a stream are those of its own losses.
    assert_close(found.state_dict(), wanted.state_dict(), rtol=0, atol=0)


@pytest.mark.finished("train-student")
def test_streams_of_different_identities_are_not_joined(project: Project, tmp_path: Path) -> None:
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    student, other = project.run / "student.safetensors", tmp_path / "other.safetensors"
    with safe_open(student, framework="pt") as file:
        info = json.loads(file.metadata()["deskpro"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    info["classes"] = [f"x{pid}" for pid in info["classes"]]
    save_file(tensors, other, {"deskpro": json.dumps(info)})
    options, home = config.load(project.config), RunFolder(tmp_path / "joined")
    with pytest.raises(InputError, match="different identities"):
        run_stage(JoinStreams(options, home, {"face": student, "body": other}), options, home)
    assert not home.student.exists()
