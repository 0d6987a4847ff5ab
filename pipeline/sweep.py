"""Students of one teacher: every combination of some options, with several seeds, in one table."""

from __future__ import annotations

import functools
import itertools
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import write_aside
from deskpro.pipeline import config, runner, students, tables
from deskpro.pipeline.stages import make
from deskpro.pipeline.studies import Changes, Variants, same_cells
from deskpro.pipeline.summaries import draw_sweep, summarise
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.params import LEAVES, flatten, leaf_of
from deskpro.stages.base.progress import log, table
from deskpro.stages.base.run_folder import RunFolder, read_manifest
from deskpro.stages.base.stage import Digests
from deskpro.stages.losses.terms import targets_needed

SEED = "train_student.seed"


class SweptRun(NamedTuple):
    """The run whose options are varied, and how many students are trained for that."""

    options: Options
    folder: RunFolder
    force: bool = False
    seeds: int = 3
    """Seeds of each combination, counted up from that of the recipe."""
    jobs: int = 1
    """Students at a time."""
    one_by_one: bool = False
    """Vary one option at a time, the others are the recipe's; not every combination."""


def sweep(run: SweptRun, grids: Iterable[str]) -> Path:
    """Train and evaluate every combination with every seed; an interrupted call is resumed.

    Writes `sweep.csv` into the run folder, a row per combination and stream: a column per option,
    then what `summarise` returns. Prints it, and draws `sweep.png` and `sweep.svg`. Differences are
    from the combination that the recipe has, or from the first.
    """
    options = run.options
    variants, first = _variants(run, grids)
    _make_inputs(run, variants)
    found = summarise(
        _train(run, variants), lambda _: first, same_cells(options, variants, lambda _: first)
    )
    path = run.folder.path / "sweep.csv"
    chosen = pd.DataFrame([variants[name] for name in found["variant"]])
    written = found.drop(columns="variant").rename(columns={"replicates": "seeds"})
    with write_aside(path) as aside:
        pd.concat([chosen, written], axis=1).to_csv(aside, index=False)
    draw_sweep(found, tables.labels(variants), path.with_suffix(""))
    table(*tables.terminal(tables.sweep_table(found, first, variants)))
    return path


def commands(run: SweptRun, grids: Iterable[str]) -> list[str]:
    """A shell command for each student of `sweep`, for a scheduler's array of jobs.

    Teacher and caches are made first; each student's folder gets its recipe. The commands may run
    at once, in any order and on other machines that see the same folders: none locks the folder
    that they share. `sweep` of the same grids then finds the students and writes the table.

    Raises:
        InputError: a student is there that was trained by another recipe.
    """
    variants, _ = _variants(run, grids)
    _make_inputs(run, variants)
    places = dict[Path, students.StudyTask]()
    for task in _tasks(run, variants).values():
        places.setdefault(task.folder.path, task)
    digests = Digests(FileIndex())
    for task in places.values():  # before any recipe is replaced
        try:
            runner.refuse_stale(make("train-student", task.options, task.folder), digests)
        except InputError as error:
            again = "The same sweep with --force in the place of --print-commands trains all again"
            raise InputError(f"{error}. {again}") from None
    for path, task in places.items():
        path.mkdir(parents=True, exist_ok=True)
        runner.record_recipe(task.options, task.folder)
    program = ["deskpro"] if shutil.which("deskpro") else [sys.executable, "-m", "deskpro"]
    return [shlex.join([*program, "eval", "--run", str(path)]) for path in places]


def _make_inputs(run: SweptRun, variants: Variants) -> None:
    """Bring the run to where its students can train: images, and targets where any learns some."""
    learns = _learns(run.options, variants)
    if learns or run.options.prepare is not None:
        name = "teacher-cache" if learns else "prepare"
        runner.run_stage(name, run.options, run.folder, chain=True)


def _learns(options: Options, variants: Variants) -> bool:
    """Whether any student of a sweep learns targets."""
    every = (config.override(options, changes) for changes in variants.values())
    return any(targets_needed(each, each.streams) for each in every)


def _variants(run: SweptRun, grids: Iterable[str]) -> tuple[Variants, str]:
    """The combinations, all possible, and the one that differences are from."""
    options = run.options
    variants = combinations(
        grids, flatten(options.model_dump(mode="json")) if run.one_by_one else None
    )
    changed = {
        name: config.override(options, changes, f"--grid {name}")
        for name, changes in variants.items()
    }
    first = next((name for name, own in changed.items() if own == options), next(iter(changed)))
    return variants, first


def combinations(grids: Iterable[str], recipe: Changes | None = None) -> dict[str, Changes]:
    """`key=value,value …` → name of each combination → its options. Values are YAML.

    recipe: where given, one option at a time differs from its values, which come first.

    Raises:
        InputError: a grid is malformed, or an option is named twice.
    """
    axes: dict[str, list[object]] = {}
    for grid in grids:
        key, _, values = grid.partition("=")
        found = config.parse(f"[{values}]")
        listed = isinstance(found, list) and all(found.count(value) == 1 for value in found)
        if key == SEED:
            raise InputError(
                f"--grid {grid}: seeds are counted up from {SEED}; give their number with --seeds, "
                f"and the first with --set {SEED}=N"
            )
        if leaf_of(key) not in LEAVES or key in axes or not values or not listed:
            raise InputError(
                f"--grid {grid}: must be OPTION=VALUE,VALUE…, such as kd_loss.T=1,2,5, with each "
                "option of the recipe and each value at most once"
            )
        axes[key] = found
    every = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if recipe is not None:
        if absent := [key for key in axes if key not in recipe]:
            raise InputError(
                f"--grid {absent[0]}: the recipe has no value of it, from which the others would "
                "differ one by one; set it in the recipe, or with --set"
            )
        own = {key: recipe[key] for key in axes}
        single = [own | {key: value} for key, values in axes.items() for value in values]
        every = [own, *(each for each in single if each != own)]
    return {",".join(f"{key}={value}" for key, value in each.items()): each for each in every}


def _train(run: SweptRun, variants: Variants) -> pd.DataFrame:
    """Train and evaluate every combination with every seed; students that are fresh are kept.

    Returns:
        The rows of `students.rows`, with replicate (the seed), parameters and macs.
    """
    tasks = _tasks(run, variants)
    make_worker, launch = functools.partial(_worker, students.Mode(run.force)), run.options.launch
    for task in students.run_tasks([*tasks.values()], make_worker, launch, run.jobs, "sweep"):
        log(students.result_line(task))
    rows = []
    for (variant, seed), task in tasks.items():
        manifest = read_manifest(task.folder.manifest("train-student")) or {"result": {}}
        costs = {name: manifest["result"].get(name) for name in ("parameters", "macs")}
        named = {"replicate": seed, "variant": variant, **costs}
        rows += [{**row, **named} for row in students.rows(task)]
    return pd.DataFrame(rows)


def _tasks(run: SweptRun, variants: Variants) -> dict[tuple[str, int], students.StudyTask]:
    """Combination and seed → its student; caches that combinations need are made here.

    Students that differ from the run's in the seed alone are those of every sweep.
    """
    options, folder, below = run.options, run.folder, run.folder.path / "sweep"
    caches, tasks = dict[str, Path](), dict[tuple[str, int], students.StudyTask]()
    first, learns = options.train_student.seed, _learns(options, variants)
    for variant, changes in variants.items():
        changed, source = config.override(options, changes), folder.source
        if learns:
            own_cache = below / variant.replace("/", "%2F")
            changed, source = students.with_cache(options, folder, changes, own_cache, caches)
        for seed in range(first, first + run.seeds):
            own = config.override(changed, {SEED: seed})
            shared = own == config.override(options, {SEED: seed})
            name = f"recipe-{seed}" if shared else f"{variant}-{seed}".replace("/", "%2F")
            place = folder if own == options else RunFolder(below / name, source)
            parts, title = dict.fromkeys(own.streams, place), f"{variant}, seed {seed}"
            tasks[variant, seed] = students.StudyTask(title, own, place, parts=parts)
    return tasks


def _worker(mode: students.Mode) -> Callable[[students.StudyTask], None]:
    train, evaluate = students.trainer(mode), students.evaluator(mode)

    def work(task: students.StudyTask) -> None:
        train(task)
        evaluate(task)

    return work
