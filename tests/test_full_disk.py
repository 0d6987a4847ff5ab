"""A machine that lacks something ends a stage with one line; the same command resumes.

`RLIMIT_FSIZE` is a disk that is full for files above a size, for every file of a process.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deskpro.pipeline import cli, failures
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.training_options import TensorBoard
from deskpro.stages.training.monitor import Curves
from tests.conftest import Project, Result, run_process
from tests.test_crash_points import digests


@contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """This process's limit of a resource while the block runs."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def one_line(result: Result) -> str:
    """The message of a command that could not finish."""
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    [line] = [line for line in result.err.splitlines() if line.startswith("deskpro: ")]
    assert "type the same command" in line
    return line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "sizes", "output"),
    [
        pytest.param("train-teacher", (10, 4_000, 200_000), "teacher.safetensors"),
        pytest.param("teacher-cache", (10, 1_000), "targets.zarr/teachers/default/logits",
                     marks=pytest.mark.finished("train-teacher")),
        pytest.param("train-student", (6_000, 200_000), "student.safetensors",
                     marks=pytest.mark.finished("teacher-cache")),
        pytest.param("eval", (6_000,), "features.zarr",
                     marks=pytest.mark.finished("train-student")),
    ],
)  # fmt: skip
def test_every_stage_resumes_after_files_were_too_large(
    stage: str,
    sizes: tuple[int, ...],
    output: str,
    project: Project,
    finished_run: Callable[[str], Path],
) -> None:
    where = ("--config", str(project.config), "--run", str(project.run))
    for size in sizes:

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        done = run_process(stage, *where, preexec_fn=limit)
        line = one_line(Result(done.returncode, done.stdout, done.stderr))
        assert re.match(rf"deskpro: {project.run.parent}/\S+: file too large\. ", line)
        assert not [*project.run.rglob(".*.partial*")]
    project.ok(stage)
    of_run, wanted = digests(project.run), digests(finished_run(stage))
    names = [name for name in wanted if name.startswith(output)]
    assert names
    assert {name: of_run[name] for name in names} == {name: wanted[name] for name in names}


@pytest.mark.finished("eval")
def test_a_report_that_is_too_large_leaves_the_earlier_one(project: Project) -> None:
    page = project.run / "report.html"
    page.write_text("before")
    with limited(resource.RLIMIT_FSIZE, 10_000):
        line = one_line(project.command("report", str(project.run)))
    assert line.startswith(f"deskpro: {page}: file too large")
    assert page.read_text() == "before"
    assert not [*project.run.rglob(".*.partial*")]


@pytest.mark.slow
@pytest.mark.finished("train-teacher")
def test_too_few_open_files_are_one_line(project: Project) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))

    where = ("--config", str(project.config), "--run", str(project.run))
    done = run_process("teacher-cache", *where, "--set", "data.workers=2", preexec_fn=few)
    line = one_line(Result(done.returncode, done.stdout, done.stderr))
    assert "ulimit -n" in line


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_event_files_that_cannot_be_written_name_their_folder(tmp_path: Path) -> None:
    curves = Curves(tmp_path / "events", TensorBoard(every=1), lambda: None)
    with limited(resource.RLIMIT_FSIZE, 10), pytest.raises(OSError) as found:
        curves.step(1, {"total": 1.0})
    assert found.value.errno == errno.EFBIG
    assert found.value.filename == str(tmp_path / "events")


FILE = "/run/.state/student_checkpoints/step-000000004.pt"


def of_file(number: int) -> OSError:
    return OSError(number, os.strerror(number), FILE)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (of_file(errno.ENOSPC), f"{FILE}: no space left on device. Free some space"),
        (of_file(errno.EDQUOT), f"{FILE}: disk quota exceeded. Free some space"),
        (of_file(errno.EFBIG), f"{FILE}: file too large"),
        (of_file(errno.EROFS), f"{FILE}: read-only file system. Make it writable"),
        (of_file(errno.EMFILE), f"{FILE}: too many open files"),
        (RuntimeError("shared memory object </torch_1>: Too many open files (24)"), "ulimit -n"),
        (InputError("1.jpg: unreadable image: [Errno 24] Too many open files"), "ulimit -n"),
        (
            RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left on "
                "device (28)"
            ),
            "data.workers=0",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
                "dataloader's workers are out of shared memory."
            ),
            "data.workers=0",
        ),
        (OSError("Caught OSError in worker 0.\n[Errno 28] No space left on device"), "no space"),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    error: Exception,
    expected: str,
    command: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "deskpro", fail)
    assert expected in one_line(command("eval"))


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.excepthook, sys.unraisablehook, signal.getsignal(signal.SIGTERM)
    for error in (RuntimeError("wrong"), FileNotFoundError(errno.ENOENT, "no such file", "x")):
        with pytest.raises(type(error)), failures.report_errors():
            raise error
    assert before == (threading.excepthook, sys.unraisablehook, signal.getsignal(signal.SIGTERM))
