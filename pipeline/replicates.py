"""Replicates of a run: another world, teacher and student each, and a study's variants of each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from deskpro.cache.lock import hold
from deskpro.pipeline import config, references, runner, students
from deskpro.pipeline.results_file import world_facts
from deskpro.pipeline.studies import Variants
from deskpro.pipeline.study_bars import StudyBars
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import captured, log, start
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data import benchmark


class Replicate(NamedTuple):
    """A world, a teacher and a student; number 0 is the run itself."""

    number: int
    options: Options
    folder: RunFolder
    model: Path | None = None
    """The benchmark of the run, after which this one's is drawn; None: the images are the run's."""

    @property
    def name(self) -> str:
        return f"replicate {self.number}"


def replicates(options: Options, folder: RunFolder, count: int) -> list[Replicate]:
    """The run and its replicates: seeds counted up, worlds beside that of the run.

    Where the run does not train the teacher, all use its targets, and the students alone differ.
    """
    found, root = [Replicate(0, options, folder)], options.data.root
    fixed = students.fixed_teacher(options, folder)
    model = root if not fixed and world_facts(root) else None
    for number in range(1, count):
        changes: dict[str, object] = {"train_student.seed": options.train_student.seed + number}
        if not fixed:
            changes["train_teacher.seed"] = options.train_teacher.seed + number
        if model is not None:
            changes["data.root"] = root.with_name(f"{root.name}-{number}")
        place = folder.path / "ablation" / f"replicate-{number}"
        own = RunFolder(place, folder.upstream if fixed else None)
        found.append(Replicate(number, config.override(options, changes), own, model))
    return found


def train_all(
    chosen: list[Replicate], variants: Variants, *, force: bool, jobs: int
) -> Iterator[tuple[Replicate, pd.DataFrame]]:
    """Replicates with what was measured of each, in the order in which they are done.

    Replicates are side by side first; where they are fewer than jobs, so are each one's students.
    """
    if len(chosen) < 2:
        yield from ((each, train(each, variants, force=force, jobs=jobs)) for each in chosen)
        return
    make_worker = functools.partial(_worker, variants, force, max(jobs // len(chosen), 1))
    bars = StudyBars("ablation", len(chosen), of_students=False)
    yield from students.side_by_side(chosen, make_worker, chosen[0].options.launch, jobs, bars)


def _worker(variants: Variants, force: bool, jobs: int) -> Callable[[Replicate], pd.DataFrame]:
    def work(replicate: Replicate) -> pd.DataFrame:
        with captured(replicate.folder.path):
            log(f"{replicate.name}, in {replicate.folder.path}")
            return train(replicate, variants, force=force, jobs=jobs)

    return work


def train(replicate: Replicate, variants: Variants, *, force: bool, jobs: int = 1) -> pd.DataFrame:
    """Train and evaluate a study's variants of a replicate; what is fresh is kept.

    What the study alone has made is rebuilt where it is stale; the run itself is not.

    Args:
        force: train the students although they are fresh.

    Returns:
        A row per variant and stream, and of what they are compared with (see `references`):
        replicate, variant, stream, protocol, queries, mAP, rank1, mAP_with_face (shares in 0..1),
        minutes (of training), run (its folder).
    """
    number, options, folder, model = replicate
    mode = students.Mode(force, update=number > 0)
    if model is not None:
        _draw_world(model, options.data.root, number)
    options = students.with_targets(options, variants)
    runner.run_stage("teacher-cache", options, folder, chain=True, update=mode.update)
    trainings, joined = students.plan(options, folder, variants)
    for tasks, work in ((trainings, students.trainer), (joined, students.evaluator)):
        make_worker = functools.partial(work, mode)
        for task in students.run_tasks(tasks, make_worker, options.launch, jobs, replicate.name):
            if task.parts:
                log(students.result_line(task))
    rows = [row for task in joined for row in students.rows(task)]
    of_first = [row for row in rows if row["variant"] == joined[0].name]
    found = pd.DataFrame([*rows, *references.rows(options, folder, of_first)])
    found.insert(0, "replicate", number)
    return found


def require_worlds(chosen: list[Replicate]) -> None:
    """Raises InputError where something else lies in the place of a world, before any work."""
    for number, options, _, model in chosen:
        if model is not None and options.data.root.exists():
            _require_world(model, options.data.root, number)


def _draw_world(model: Path, place: Path, number: int) -> None:
    """Draw a benchmark with the options of another and its seed counted up, unless it is there."""
    with hold(place, "make-benchmark"):
        if not place.exists():
            options = _world_options(model, number)
            start("make-benchmark", seed=options.seed, output=place)
            benchmark.make_benchmark(place, options, workers=1)
    _require_world(model, place, number)


def _world_options(model: Path, number: int) -> benchmark.BenchmarkOptions:
    options = benchmark.BenchmarkOptions(**world_facts(model)["options"])
    return options.model_copy(update={"seed": options.seed + number})


def _require_world(model: Path, place: Path, number: int) -> None:
    options, found = _world_options(model, number), world_facts(place)
    wanted = {"format": benchmark.FORMAT, "options": options.model_dump()}
    if found != wanted:
        raise InputError(
            f"{place}: must be the benchmark of {model} with seed {options.seed}; "
            f"{_difference(found, wanted)}. Remove the folder, and it is drawn again"
        )


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if not found:
        return "it has no benchmark.json"
    names, other = ({"format": facts["format"], **facts["options"]} for facts in (found, wanted))
    words = (
        f"{name} is {names.get(name)}, must be {value}"
        for name, value in other.items()
        if names.get(name) != value
    )
    return ", ".join(words)
