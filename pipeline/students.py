"""The students of a study: which cache each needs, their trainings and evaluations side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from deskpro.cache.files import sha256
from deskpro.cache.sealed import INDEX
from deskpro.pipeline import config, messages, runner
from deskpro.pipeline.results_file import measured
from deskpro.pipeline.stages import stage_class
from deskpro.pipeline.studies import Changes, Variants, changes_of
from deskpro.pipeline.study_bars import StudyBars
from deskpro.stages.base.engine import map_items
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Launch, Options
from deskpro.stages.base.params import relevant
from deskpro.stages.base.progress import captured, log
from deskpro.stages.base.run_folder import RunFolder, read_manifest
from deskpro.stages.losses.terms import targets_needed
from deskpro.stages.targets.kinds import TARGETS, all_targets, is_imported, needs_teacher


class StudyTask(NamedTuple):
    """A student that is trained, whole or one stream of it, or joined and evaluated."""

    name: str
    options: Options
    folder: RunFolder
    stream: str = ""
    """The only stream that is trained; both where empty."""
    parts: Mapping[str, RunFolder] = {}
    """Stream → the student that it is taken from."""


class Mode(NamedTuple):
    """What happens to outputs that exist."""

    force: bool = False
    """They are made again."""
    update: bool = False
    """They are, where they are stale; otherwise that is an error, but for what a study alone has
    made."""


def plan(
    options: Options, folder: RunFolder, variants: Variants
) -> tuple[list[StudyTask], list[StudyTask]]:
    """The trainings that variants need, that of the recipe first, and the variants' students.

    A stream is trained once for all variants that depend on the same options. Caches that variants
    need are made here.
    """
    trainings, caches, joined = dict[str, StudyTask](), dict[str, Path](), list[StudyTask]()
    for variant, changes in variants.items():
        own = folder.path / "ablation" / variant / "targets"
        changed, source = with_cache(options, folder, changes, own, caches)
        parts = {}
        for stream in options.streams:
            differs = changes_of(stream, options, changes)
            key = json.dumps([stream, str(source), differs], sort_keys=True) if differs else ""
            if key not in trainings:
                place = RunFolder(folder.path / "ablation" / f"{stream}-{variant}", source)
                trainings[key] = (
                    StudyTask(f"{variant}, {stream}", changed, place, stream)
                    if differs
                    else StudyTask("the recipe", options, folder)
                )
            parts[stream] = trainings[key].folder
        place = home(options, folder, variant, changes)
        place = folder if place.path == folder.path else RunFolder(place.path, source)
        joined.append(StudyTask(variant, changed, place, parts=parts))
    return sorted(trainings.values(), key=lambda task: bool(task.stream)), joined


def with_targets(options: Options, variants: Variants) -> Options:
    """The options with a cache that holds every target of the recipe's teacher that a variant
    needs."""
    needed = {*options.cache.targets}
    for changes in variants.values():
        changed = config.override(options, changes)
        needed |= targets_needed(changed, changed.streams)
    names = [name for name in TARGETS if name in needed]
    return config.override(options, {"cache.targets": names})


def home(options: Options, folder: RunFolder, variant: str, changes: Changes) -> RunFolder:
    """Where the student of a variant lies: it is the run's, or one that the study makes."""
    if not any(changes_of(stream, options, changes) for stream in options.streams):
        return folder
    return RunFolder(folder.path / "ablation" / variant, folder.upstream)


def fixed_teacher(options: Options, folder: RunFolder) -> bool:
    """Whether a run does not train its teacher: its weights are given, or its targets come from
    another run or machine."""
    unpacked = RunFolder(folder.upstream).given() is not None
    return options.pre_train is not None or folder.source is not None or unpacked


def given(options: Options, folder: RunFolder) -> dict[str, str]:
    """Name → SHA-256 of what a run's students learn from and the run doesn't make: the teacher of
    another run, a cache that was unpacked, imported targets."""
    source = RunFolder(folder.upstream)
    files = {
        name: source.targets / target.group / INDEX
        for name, target in all_targets(options).items()
        if is_imported(target, options)
    }
    if folder.source is not None:
        files["teacher"] = source.teacher
    found = {name: sha256(path) for name, path in files.items() if path.is_file()}
    if (unpacked := source.given()) is not None:
        found["cache"] = unpacked["digest"]
    return found


def with_cache(
    options: Options, folder: RunFolder, changes: Changes, own: Path, made: dict[str, Path]
) -> tuple[Options, Path]:
    """A variant's options, and the run whose cache it uses.

    It is the run's, or `own` where it needs another teacher or cache, or the one in `made` of an
    earlier variant that needs the same; a teacher that would be the run's isn't trained again. A
    variant without targets has one, too: its samples and views are those of the variants that it
    is compared with.
    """
    changed = config.override(options, changes)
    teacher, cache = (stage_class(name).params for name in ("train-teacher", "teacher-cache"))
    fixed = fixed_teacher(options, folder)
    params = cache if fixed else (*teacher, *cache)
    if relevant(changed, params) == relevant(options, params):
        return changed, folder.upstream
    if fixed or relevant(changed, teacher) == relevant(options, teacher):
        weights = options.pre_train or (folder.teacher if needs_teacher(options) else None)
        changed = config.override(changed, {"pre_train": weights})
    own = made.setdefault(json.dumps(relevant(changed, params), sort_keys=True), own)
    runner.run_stage("teacher-cache", changed, RunFolder(own), chain=True, update=True)
    return changed, own


def run_tasks(
    tasks: list[StudyTask],
    make_worker: Callable[[], Callable[[StudyTask], None]],
    launch: Launch,
    jobs: int,
    title: str,
) -> Iterator[StudyTask]:
    """The tasks in the order in which they are done, so many at a time."""
    for task, _ in side_by_side(tasks, make_worker, launch, jobs, StudyBars(title, len(tasks))):
        yield task


def side_by_side(
    items: Sequence[Any],
    make_worker: Callable[[], Callable[[Any], Any]],
    launch: Launch,
    jobs: int,
    bars: StudyBars,
) -> Iterator[tuple[Any, Any]]:
    """Students or replicates with what a worker makes of each, so many at a time, in the order in
    which they are done. All jobs together have the threads of this machine."""
    if launch.threads is None and jobs > 1:
        launch = launch.model_copy(update={"threads": max(1, (os.cpu_count() or 1) // jobs)})
    # Within a worker, an item's stages do their work themselves.
    alone = Launch(threads=launch.threads)
    items = [i._replace(options=i.options.model_copy(update={"launch": alone})) for i in items]
    launch = launch.model_copy(update={"workers": min(jobs, len(items))})
    with bars:
        starting = bars.starting(items)
        for item, result in map_items(launch, make_worker, starting, bars.listen, len(items)):
            bars.end(item)
            yield item, result


@contextmanager
def _of_study() -> Iterator[None]:
    """A stage advises commands for the run; a stale student of a study is another one's."""
    try:
        yield
    except InputError as error:
        if error.command not in ("train-student --force", "eval --force"):
            raise
        raise InputError(f"{error}. The same command with --force makes it again") from None


def trainer(mode: Mode) -> Callable[[StudyTask], None]:
    """A worker that trains a student, or a stream of it."""
    from deskpro.stages.train_student import TrainStudent

    def work(task: StudyTask) -> None:
        with captured(task.folder.path), _of_study():
            log(f"{task.name}, in {task.folder.path}")
            stage = TrainStudent(task.options, task.folder, only=task.stream or None)
            update = mode.update or bool(task.stream)
            runner.run_stage(stage, task.options, task.folder, force=mode.force, update=update)

    return work


def evaluator(mode: Mode) -> Callable[[StudyTask], None]:
    """A worker that evaluates a student, which it joins first where its streams lie apart."""
    from deskpro.stages.evaluate import Evaluate
    from deskpro.stages.join_streams import JoinStreams

    def work(task: StudyTask) -> None:
        _, options, home, _, parts = task
        weights = {stream: part.student for stream, part in parts.items()}
        with captured(home.path), _of_study():
            if {*weights.values()} == {home.student}:
                runner.run_stage("eval", options, home, force=mode.force, update=mode.update)
                return
            log(f"{task.name}, in {home.path}")
            for stage in (
                JoinStreams(options, home, weights),
                Evaluate(options, home, home.student, kind="student"),
            ):
                runner.run_stage(stage, options, home, force=mode.force, update=True)

    return work


def rows(task: StudyTask) -> list[dict[str, Any]]:
    """What was measured of a student, a row per stream; minutes: of the trainings that it is of."""
    manifests = {part.manifest("train-student") for part in task.parts.values()}
    minutes = sum((read_manifest(path) or {}).get("seconds", 0) for path in manifests) / 60
    return [
        {"variant": task.name, **row, "minutes": minutes, "run": str(task.folder.path)}
        for row in measured(task.folder)
    ]


def result_line(task: StudyTask) -> str:
    """What was measured of a student, in a line."""
    return messages.student_result(task.name, rows(task))
