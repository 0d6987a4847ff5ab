"""Freshness, refusals, advice and shared targets, through the command line on real files."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deskpro.cache.file_index import FileIndex
from deskpro.pipeline import config, failures, runner
from deskpro.pipeline.stages import STAGES, Row, make, needed
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Digests, Reason
from deskpro.stages.training.loop import _StepMonitor
from tests.conftest import Project, Result, run_process

pytestmark = pytest.mark.finished("teacher-cache")


def advice(result: Result) -> list[str]:
    """The command that a refusal says to type, as words after `deskpro`."""
    assert result.code == 2, result.err
    words = shlex.split(result.err.split("Type: ")[-1].splitlines()[0])
    assert words[0] == "deskpro"
    return words[1:]


def digest(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.slow
def test_the_advice_of_a_refusal_works_when_typed(project: Project) -> None:
    project.ok("train-student")
    refused = project("train-student", "--set", "kd_loss.T=1")
    assert "kd_loss.T was 5.0, is 1" in refused.err
    done = project.command(*advice(refused))
    assert done.code == 0, done.err
    assert (
        "kd_loss: {" in project.config.read_text()
        or json.loads((project.run / ".state/manifests/train-student.json").read_text())["params"][
            "kd_loss.T"
        ]
        == 1
    )


@pytest.mark.slow
def test_the_advice_names_the_stage_that_is_stale(project: Project) -> None:
    refused = project("train-student", "--set", "views.flip=1")
    words = advice(refused)
    assert words[0] == "teacher-cache"
    assert words[-1] == "--force"
    assert project.command(*words).code == 0
    assert project("train-student", "--set", "views.flip=1").code == 0


@pytest.mark.finished("train-student")
def test_a_kill_after_the_manifest_leaves_nothing(project: Project) -> None:
    started = project.run / ".state" / "manifests" / "train-student.started"
    started.write_text("{}")
    student = project.run / "student.safetensors"
    kept = shutil.copy(student, student.with_name(f"{student.name}.unrecorded"))
    foreign = student.with_name(f"{student.name}.unrecorded+")
    foreign.write_bytes(b"somebody's work")
    result = project.ok("train-student")
    assert "is fresh" in result.err
    assert f"{foreign} is kept: its content differs" in result.err
    assert not started.exists()
    assert not kept.exists()
    assert foreign.read_bytes() == b"somebody's work"


@pytest.mark.slow
@pytest.mark.finished("train-student")
def test_a_stopped_force_with_other_options_resumes_and_leaves_the_old_output_fresh(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ("--set", "train_student.lr=1e-3", "--set", "checkpoints.every=1")
    student, add = project.run / "student.safetensors", _StepMonitor.add
    checkpoints, before = project.run / ".state" / "student_checkpoints", digest(student)

    def interrupt(monitor: _StepMonitor, step: int, *more: Any) -> None:
        add(monitor, step, *more)
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(_StepMonitor, "add", interrupt)
        stopped = project("train-student", *other, "--force")
    assert stopped.code == 130, stopped.err
    assert "run the same command without --force" in stopped.err
    kept = sorted(checkpoints.iterdir())

    assert "is fresh" in project.ok("train-student").err
    assert digest(student) == before
    assert sorted(checkpoints.iterdir()) == kept

    words = advice(project("eval", *other))
    assert words[0] == "train-student"
    assert "--force" not in words
    assert "resuming at step 2" in project.command(*words).err
    assert digest(student) != before
    assert not checkpoints.exists()
    assert "is fresh" in project.ok("train-student", *other).err


@pytest.mark.slow
def test_a_run_folder_alone_brings_its_recipe(project: Project) -> None:
    project.ok("train-student", "--set", "kd_loss.T=2")
    fresh = project.command("train-student", "--run", str(project.run))
    assert fresh.code == 0
    assert "is fresh" in fresh.err
    nowhere = project.command("train-student", "--run", str(project.run / "nowhere"))
    assert nowhere.code == 2
    assert "config.yaml" in nowhere.err


@pytest.mark.slow
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


@pytest.mark.finished("teacher-cache")
def test_the_teacher_that_another_run_was_given_is_used(project: Project, tmp_path: Path) -> None:
    """The recipe has no pre_train: no teacher is trained in the other run."""
    given = (project.run / "teacher.safetensors").rename(tmp_path / "given.safetensors")
    (project.run / "teacher.json").rename(given.with_suffix(".json"))
    project.ok("teacher-cache", "--force", "--set", f"pre_train={given}")
    words = ("--config", str(project.config), "--run", str(tmp_path / "own"))
    done = project.command("teacher-cache", *words, "--from", str(project.run))
    assert done.code == 0, done.err
    assert "train-teacher" not in done.err
    assert not (project.run / "teacher.safetensors").exists()


@pytest.mark.finished("train-student")
def test_a_source_that_moved_is_named_once(project: Project, tmp_path: Path) -> None:
    own, now = tmp_path / "own", tmp_path / "now"
    shutil.copytree(project.run, now)
    project.run.rename(own)
    shutil.rmtree(own / "targets.zarr")
    RunFolder(own, tmp_path / "before").write_source()
    words = ("train-student", "--config", str(project.config), "--run", str(own))
    refused = project.command(*words)
    assert refused.code == 2
    assert f"{own}: its targets are those of {tmp_path / 'before'}: no run folder" in refused.err
    assert "is fresh" in project.command(*words, "--from", str(now)).err
    assert "is fresh" in project.command(*words).err
    assert str(now / "targets.zarr") in project.command("cache", "info", str(own)).err
    assert project.command("cache", "verify", str(own)).code == 0


def test_a_source_that_is_no_run_is_refused(project: Project, tmp_path: Path) -> None:
    refused = project("train-student", "--from", str(tmp_path / "nothing"))
    assert refused.code == 2
    assert "no run folder" in refused.err


@pytest.mark.slow
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


@pytest.mark.slow
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


ADDED_STAGE = '''
from dataclasses import dataclass
from pathlib import Path

from deskpro.stages.base.stage import Dep, Job, Result, Stage


@dataclass(frozen=True)
class CountResult(Result):
    tensors: int


class CountTensors(Stage):
    """Counts the tensors of the student."""

    name = "count-tensors"
    params = ("eval.flip",)

    def upstream(self) -> str:
        return "train-student"

    def deps(self) -> list[Dep]:
        return [Dep("the student", self.folder.student)]

    def outs(self) -> list[Path]:
        return [self.folder.path / "count.txt"]

    def run(self, job: Job) -> Result:
        from safetensors.numpy import load_file

        count = len(load_file(self.folder.student))
        self.outs()[0].write_text(str(count))
        return CountResult(count)
'''


@pytest.mark.finished("train-student")
def test_a_stage_is_added_by_its_module_and_its_row(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "added_stage.py").write_text(ADDED_STAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(STAGES, "count-tensors", Row("added_stage:CountTensors", "Count."))
    options, folder = config.load(project.config), RunFolder(project.run)
    runner.run_stage("count-tensors", options, folder)
    assert int((project.run / "count.txt").read_text()) > 100
    manifest = json.loads(folder.manifest("count-tensors").read_text())
    assert manifest["result"]["tensors"] > 100
    stage = make("count-tensors", config.override(options, {"eval.flip": False}), folder)
    [reason] = runner.stale_reasons(stage, Digests(FileIndex()))
    assert reason == Reason("param", "eval.flip", True, False)
    assert needed(options)[-1] == "count-tensors"


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
def test_a_half_trained_run_resumes_on_a_copied_dataset(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(project.run, whole)
    assert project.command("train-student", "--run", str(whole)).code == 0

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("deskpro.stages.training.recipe.save", stop)  # trained, but not saved
        assert project("train-student").code == 130
    copied = tmp_path / "copied"
    shutil.copytree(project.data, copied, copy_function=shutil.copyfile)
    resumed = project.ok("train-student", "--set", f"data.root={copied}")
    assert "resuming at step" in resumed.err
    student = "student.safetensors"
    assert (project.run / student).read_bytes() == (whole / student).read_bytes()


@pytest.mark.parametrize("error", [ImportError("half loaded"), InputError("a damaged file")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_turns_into_another_error_is_one_line(
    number: signal.Signals, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def load() -> None:
        try:
            signal.raise_signal(number)
        finally:
            raise error

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop, failures.report_errors():
        load()
    assert stop.value.code == 128 + number
    assert capsys.readouterr().err.startswith(f"deskpro: stopped by {number.name}; ")
    assert signal.getsignal(number) == before
