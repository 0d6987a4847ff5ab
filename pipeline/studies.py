"""Several students of one teacher: where each lives, and how they are trained."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from deskpro.pipeline import config, failures
from deskpro.pipeline import runner as running
from deskpro.pipeline import stages as plan
from deskpro.stages.base.errors import InputError, Stopped
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.training.signals import stop_requests

Variants = dict[str, dict[str, object]]
"""Name of each variant → what it changes in the recipe."""


class Student(NamedTuple):
    """A variant with a seed, its options and its folder."""

    variant: str
    seed: int
    options: Options
    home: RunFolder


def members(
    options: Options,
    folder: RunFolder,
    variants: Variants,
    seeds: int,
    below: str = "ablation",
) -> list[Student]:
    """Every variant with every seed, counted up from the recipe's; makes caches that they need."""
    first = options.train_student.seed
    students = []
    for variant, changes in variants.items():
        changed, shared = _with_cache(options, folder, variant, changes, below)
        for seed in range(first, first + seeds):
            place = _place(options, folder, changed, shared, variant, seed, below)
            students.append(Student(variant, seed, *place))
    return students


def primary_streams(student: Student) -> dict[str, Any]:
    """What was measured of a student under the first protocol, by stream; shares in 0..1."""
    protocols = json.loads(student.home.metrics.read_text())["protocols"]
    return dict(next(iter(protocols.values()))["streams"])


def train_and_evaluate(students: Iterable[Student], jobs: int, force: bool) -> None:
    """Train and evaluate those that aren't fresh, `jobs` at a time, each in a process of its own.

    Asked to stop (Ctrl-C, SIGTERM), or when one fails, all leave after a checkpoint; none stays
    behind when this process is killed. The same call goes on from there.

    Raises Stopped, or InputError where a student failed, after what it said itself.
    """
    if jobs == 1:
        for student in students:
            _train_and_evaluate(student, force)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deskpro.stages.train_student", "deskpro.stages.evaluate"])
    waiting, running = deque(students), dict[BaseProcess, Student]()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    failed: Student | None = None
    code = 0
    with stop_requests() as request:
        while running or (waiting and request.signal is None and failed is None):
            if waiting and len(running) < jobs and request.signal is None and failed is None:
                student = waiting.popleft()
                child = context.Process(target=_alone, args=(student, force, threads))
                child.start()
                running[child] = student
                continue
            connection.wait([child.sentinel for child in running], timeout=0.2)
            for ended in [child for child in running if child.exitcode is not None]:
                student = running.pop(ended)
                if ended.exitcode and request.signal is None and failed is None:
                    failed, code = student, ended.exitcode
                    _stop(running)
            if request.signal is not None:
                _stop(running)
    if request.signal is not None:
        name = signal.Signals(request.signal).name
        raise Stopped(
            f"stopped by {name}; what is done stays, the same command goes on from there",
            128 + request.signal,
        )
    if failed is not None:
        how = "failed: what it said stands above" if code > 0 else f"was ended by signal {-code}"
        raise InputError(
            f"{failed.variant}, seed {failed.seed}, {how}. Its folder "
            f"is {failed.home.path}; the others stay, and the same command goes on"
        )


def _stop(children: Iterable[BaseProcess]) -> None:
    for child in children:
        child.terminate()


def _alone(student: Student, force: bool, threads: int) -> None:
    """In a process of its own: train and evaluate, and don't outlive who asked for it."""
    from deskpro.stages.base import device

    device.use_threads(threads)
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    with failures.report_errors():
        _train_and_evaluate(student, force)


def _leave_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _with_cache(
    options: Options, folder: RunFolder, variant: str, changes: dict[str, object], below: str
) -> tuple[Options, RunFolder]:
    """A variant's options, and the run whose cache it uses."""
    changed = config.override(options, changes)
    if changed.cache == options.cache:
        return changed, folder
    shared = RunFolder(folder.path / below / variant)
    teacher = {"pre_train": plan.teacher_weights(options, folder)}
    running.run_stage("teacher-cache", config.override(changed, teacher), shared)
    return config.override(changed, teacher), shared


def _place(
    options: Options,
    folder: RunFolder,
    changed: Options,
    shared: RunFolder,
    variant: str,
    seed: int,
    below: str,
) -> tuple[Options, RunFolder]:
    """A student's options, and its folder: the run's own where it has the run's options."""
    changed = config.override(changed, {"train_student.seed": seed})
    if changed == options:
        return options, folder
    if shared == folder and _same(changed, options):  # whichever study it is for
        return changed, RunFolder(folder.path / "ablation" / f"both-{seed}", shared.path)
    return changed, RunFolder(folder.path / below / f"{variant}-{seed}", shared.path)


def _same(changed: Options, options: Options) -> bool:
    """Whether only the seed differs: studies share the students that have the recipe as it is."""
    seed = {"train_student.seed": options.train_student.seed}
    return config.override(changed, seed) == options


def _train_and_evaluate(student: Student, force: bool) -> None:
    log(f"{student.variant}, seed {student.seed}, in {student.home.path}")
    for stage in ("train-student", "eval"):
        running.run_stage(stage, student.options, student.home, force=force)
