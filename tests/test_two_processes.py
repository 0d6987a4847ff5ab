"""Two processes with the same command on one run folder: one does the work, the other is told."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deskpro.pipeline import cli
from tests.conftest import Project
from tests.test_workers import digests, sets

pytestmark = [pytest.mark.slow, pytest.mark.finished("eval")]

PAIRS = 4
"""Of each stage, on folders of their own."""


@pytest.fixture(scope="module")
def forks() -> BaseContext:
    """Processes that start within milliseconds, with torch loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deskpro.stages.train_student", "deskpro.stages.evaluate"])
    return context


class Ended(NamedTuple):
    """How a process ended: its number, exit code and standard error."""

    pid: int
    code: int
    err: str


def run_command(arguments: list[str], meet: Any, err: Path) -> None:
    """The command line in this process, as soon as the other one is there."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.stderr = err.open("w", buffering=1)
    sys.argv = ["deskpro", *arguments]
    meet.wait()
    cli.main()


def run_both(forks: BaseContext, arguments: list[str], folder: Path) -> Iterator[Ended]:
    """Two processes with one command, which start it together."""
    meet = forks.Barrier(2)
    logs = [folder / f"{number}.err" for number in (1, 2)]
    both = [
        forks.Process(target=run_command, args=(arguments, meet, log))  # type: ignore[attr-defined]
        for log in logs
    ]
    for process in both:
        process.start()
    for process, log in zip(both, logs, strict=True):
        process.join()
        yield Ended(process.pid, process.exitcode, log.read_text())


MADE = {
    "prepare": "prepared",
    "train-teacher": "run/teacher.safetensors",
    "teacher-cache": "run/targets.zarr",
    "train-student": "run/student.safetensors",
    "eval": "run/features.zarr",
}
"""Stage → what it makes."""


def contents(path: Path) -> dict[str, str]:
    """Digests of what was made, without the recipe, which names its own folder."""
    if path.is_file():
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    return {name: digest for name, digest in digests(path).items() if "config.yaml" not in name}


@pytest.mark.parametrize("pair", range(PAIRS))
@pytest.mark.parametrize("stage", MADE)
def test_one_does_the_work_and_the_other_is_told_by_whom(
    stage: str, pair: int, project: Project, forks: BaseContext, tmp_path: Path
) -> None:
    made = tmp_path / MADE[stage]
    options = ["--force", *sets("launch.threads=1")]
    if stage == "prepare":
        options = sets(
            f"data.root={made}", f"prepare.root={project.data}",
            f"prepare.parsing.labels={project.data / 'labels'}",
        )  # fmt: skip
        once = tmp_path / "once"
        project.ok(stage, *options, *sets(f"data.root={once}"))
        wanted = contents(once)
    else:
        wanted = contents(made)
    where = ["--config", str(project.config), "--run", str(project.run)]
    first, second = sorted(
        run_both(forks, [stage, *where, *options], tmp_path), key=lambda e: e.code
    )
    assert first.code == 0, first.err
    assert second.code == 2, second.err
    assert re.search(rf"in use by process {first.pid} on .* since .*{stage}", second.err)
    assert "Traceback" not in second.err
    assert contents(made) == wanted
