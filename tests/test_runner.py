"""Freshness, refusals, advice and shared targets, through the command line on real files."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Project, Result, run_process, with_cache


@pytest.fixture
def project(project: Project, tiny_run: Path, tiny_benchmark: Path) -> Project:
    """The project with a finished target cache."""
    return with_cache(project, tiny_run, tiny_benchmark)


def advice(result: Result) -> list[str]:
    """The command that a refusal says to type, as words after `deskpro`."""
    assert result.code == 2, result.err
    words = shlex.split(result.err.split("Type: ")[-1].splitlines()[0])
    assert words[0] == "deskpro"
    return words[1:]


def digest(path: Path) -> bytes:
    return path.read_bytes()


def test_the_advice_of_a_refusal_works_when_typed(project: Project) -> None:
    project.ok("train-student")
    refused = project("train-student", "--set", "kd_loss.T=1")
    assert "kd_loss.T was 5.0, is 1" in refused.err
    done = project.command(*advice(refused))
    assert done.code == 0, done.err
    assert (
        "kd_loss: {" in project.config.read_text()
        or json.loads((project.run / "manifests/train-student.json").read_text())["params"][
            "kd_loss.T"
        ]
        == 1
    )


def test_the_advice_names_the_stage_that_is_stale(project: Project) -> None:
    refused = project("train-student", "--set", "views.flip=1")
    words = advice(refused)
    assert words[0] == "teacher-cache"
    assert words[-1] == "--force"
    assert project.command(*words).code == 0
    assert project("train-student", "--set", "views.flip=1").code == 0


def test_a_run_folder_alone_brings_its_recipe(project: Project) -> None:
    project.ok("train-student", "--set", "kd_loss.T=2")
    fresh = project.command("train-student", "--run", str(project.run))
    assert fresh.code == 0
    assert "is fresh" in fresh.err
    nowhere = project.command("train-student", "--run", str(project.run / "nowhere"))
    assert nowhere.code == 2
    assert "config.yaml" in nowhere.err


def test_another_student_of_the_same_targets(project: Project, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "T1"
    words = ("--config", str(project.config), "--run", str(other), "--set", "kd_loss.T=1")
    done = project.command("eval", *words, "--from", str(project.run))
    assert done.code == 0, done.err
    assert "train-teacher" not in done.err
    assert not (other / "teacher.safetensors").exists()
    assert (other / "metrics.json").exists()
    assert not (project.run / "student.safetensors").exists()
    # It is recorded: later commands need not repeat it, and another source is refused.
    again = project.command("eval", *words)
    assert "is fresh" in again.err
    refused = project.command("eval", *words, "--from", str(tmp_path))
    assert refused.code == 2
    assert str(project.run) in refused.err
    # Both folders moved together still know each other.
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(str(project.run), moved / project.run.name)
    shutil.move(str(tmp_path / "runs"), moved / "runs")
    fresh = project.command("eval", "--run", str(moved / "runs" / "T1"))
    assert fresh.code == 0, fresh.err
    assert "is fresh" in fresh.err


def test_a_source_that_is_no_run_is_refused(project: Project, tmp_path: Path) -> None:
    refused = project("train-student", "--from", str(tmp_path / "nothing"))
    assert refused.code == 2
    assert "no run folder" in refused.err


def test_update_rebuilds_what_is_stale_and_says_so(project: Project) -> None:
    project.ok("all")
    assert project("all", "--set", "kd_loss.T=1").code == 2
    done = project.ok("all", "--update", "--set", "kd_loss.T=1")
    assert "kd_loss.T was 5.0, is 1" in done.err
    assert "targets.zarr" not in "".join(
        line for line in done.err.splitlines() if "rebuilt" in line
    )
    assert "student.safetensors is rebuilt" in done.err
    assert "metrics.json is rebuilt" in done.err


def test_a_copied_dataset_is_fresh(project: Project, tmp_path: Path) -> None:
    project.ok("all")
    copied = tmp_path / "copied"
    shutil.copytree(project.data, copied, copy_function=shutil.copyfile)
    result = project.ok("all", "--set", f"data.root={copied}")
    assert result.err.count("is fresh") == 4
    assert "done in" not in result.err


def test_everything_fresh_loads_no_torch(project: Project) -> None:
    project.ok("all")
    code = (
        "import sys\n"
        "from deskpro.pipeline import cli\n"
        f"sys.argv = ['deskpro', 'all', '--config', {str(project.config)!r}, "
        f"'--run', {str(project.run)!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "sys.exit(bool({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is fresh") == 4


def test_a_folder_in_use_is_refused_by_name(project: Project) -> None:
    from deskpro.cache.lock import hold

    with hold(project.run, "train-student"):
        refused = run_process(
            "train-student", "--config", str(project.config), "--run", str(project.run)
        )
    assert refused.returncode == 2
    assert f"{os.getpid()}" in refused.stderr
    assert "train-student" in refused.stderr
    assert not (project.run / "student.safetensors").exists()
