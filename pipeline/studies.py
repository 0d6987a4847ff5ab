"""Many students of one teacher: ablations and sweeps, trained from one cache, in one table."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from deskpro.cache.files import write_aside, write_text
from deskpro.pipeline import config, messages, runner, stages, tables
from deskpro.pipeline.study_bars import StudyBars
from deskpro.pipeline.summaries import draw_sweep, summarise
from deskpro.stages.base.engine import map_items
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import LEAVES, Launch, Options, relevant
from deskpro.stages.base.progress import captured, log, table
from deskpro.stages.base.run_folder import RunFolder, read_manifest

Variants = dict[str, dict[str, object]]
"""Name of each variant → what it changes in the recipe."""

STUDIES: dict[str, Variants] = {
    "parts": {
        "plain": {"kd_loss.enable": False, "mse.mse_weight": 0.0},
        "kd": {"mse.mse_weight": 0.0},
        "attention": {"kd_loss.enable": False},
        "both": {},
    },
    "views": {
        "unmatched": {"train_student.fresh_views": True},
        "V=1": {"train_student.views": 1},
        "V=4": {"train_student.views": 4},
        "V=16": {"train_student.views": 16},
        "live": {"train_student.fresh_views": True, "train_student.live_teacher": True},
    },
}
"""Study → its variants; gains are counted from the first."""


class Base(NamedTuple):
    """The run whose variants are studied, and how many students are trained for that."""

    options: Options
    folder: RunFolder
    force: bool = False
    seeds: int = 3
    """Seeds of each variant, counted up from `train_student.seed`."""
    jobs: int = 1
    """Students at a time."""


class Student(NamedTuple):
    """A variant with a seed, its options and its folder."""

    variant: str
    seed: int
    options: Options
    folder: RunFolder


def ablation(base: Base, study: str) -> Path:
    """Run a study and write its table and, as JSON, its rows into the run folder.

    Returns:
        The file with the table; the rows lie beside it.
    """
    rows, first = ablation_rows(base, study), next(iter(STUDIES[study]))
    found = tables.ablation_table(summarise(rows, first), first)
    table(*tables.terminal(found))
    other = study != "parts"
    add = f" --study {study}" * other + f" --seeds {base.seeds} --jobs {base.jobs}"
    page = tables.ablation_page(found, _seeds(base), messages.command(f"ablation{add}"))
    path = base.folder.path / ("ablation" + f"-{study}" * other + ".md")
    write_text(path, page)
    write_text(path.with_suffix(".json"), json.dumps(rows.to_dict("records"), indent=1) + "\n")
    return path


def ablation_rows(
    base: Base, study: str = "parts", variants: Iterable[str] | None = None
) -> pd.DataFrame:
    """Train and evaluate a study's variants with every seed; an interrupted call is resumed.

    The run's own student serves as the variant that has its options. The teacher, which sees HR
    faces, is the last variant: the upper reference of `face`.

    Returns:
        A row per variant, seed and stream: variant, seed, run (its folder), protocol, stream,
        queries, mAP, rank1 (shares in 0..1), parameters, macs, minutes (of training).
    """
    from deskpro.stages.evaluate import Evaluate

    options, folder = base.options, base.folder
    _require_parts(options, study)
    runner.run_stage("teacher-cache", options, folder, chain=True)
    chosen = {variant: STUDIES[study][variant] for variant in variants or STUDIES[study]}
    students = train(base, chosen, "ablation")
    home = RunFolder(folder.path / "ablation" / "teacher", folder.upstream)
    evaluation = Evaluate(options, home, options.pre_train or folder.teacher, kind="teacher")
    runner.run_stage(evaluation, options, home, update=True)
    return _rows([*students, Student(tables.TEACHER, options.train_teacher.seed, options, home)])


def sweep(base: Base, grids: Iterable[str]) -> Path:
    """Train and evaluate every combination with every seed; an interrupted call is resumed.

    Writes `sweep.csv` into the run folder, a row per combination and stream: a column per option,
    then what `summarise` returns. Prints it, and draws `sweep.png` and `sweep.svg`. Differences are
    from the combination that the recipe has, or from the first.
    """
    variants = combinations(grids)
    options = base.options
    changed = {  # all must be possible, before any work
        name: config.override(options, changes, f"--grid {name}")
        for name, changes in variants.items()
    }
    first = next((name for name, each in changed.items() if each == options), next(iter(changed)))
    runner.run_stage("teacher-cache", options, base.folder, chain=True)
    found = summarise(_rows(train(base, variants, "sweep")), first)
    path = base.folder.path / "sweep.csv"
    chosen = pd.DataFrame([variants[name] for name in found["variant"]])
    with write_aside(path) as aside:
        pd.concat([chosen, found.drop(columns="variant")], axis=1).to_csv(aside, index=False)
    draw_sweep(found, tables.labels(variants), path.with_suffix(""))
    table(*tables.terminal(tables.sweep_table(found, first, variants)))
    return path


def combinations(grids: Iterable[str]) -> Variants:
    """`key=value,value …` → name of each combination → its options. Values are YAML.

    Raises:
        InputError: a grid is malformed, or an option is named twice.
    """
    axes: dict[str, list[object]] = {}
    for grid in grids:
        key, _, values = grid.partition("=")
        found = config.parse(f"[{values}]")
        listed = isinstance(found, list) and all(found.count(value) == 1 for value in found)
        if key not in LEAVES or key in axes or not values or not listed:
            raise InputError(
                f"--grid {grid}: must be OPTION=VALUE,VALUE…, such as kd_loss.T=1,2,5, with each "
                "option of the recipe and each value at most once"
            )
        axes[key] = found
    every = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    return {",".join(f"{key}={value}" for key, value in each.items()): each for each in every}


def _seeds(base: Base) -> range:
    first = base.options.train_student.seed
    return range(first, first + base.seeds)


def train(base: Base, variants: Variants, below: str) -> list[Student]:
    """Train and evaluate every variant with every seed; students that are fresh are kept.

    A variant that needs another cache than the run's gets one. Students that differ from the run's
    in the seed alone are shared by all studies.
    """
    options, folder, students = base.options, base.folder, []
    for variant, changes in variants.items():
        changed, source = _with_cache(options, folder, folder.path / below / variant, changes)
        for seed in _seeds(base):
            own = config.override(changed, {"train_student.seed": seed})
            shared = own == config.override(options, {"train_student.seed": seed})
            name = f"ablation/both-{seed}" if shared else f"{below}/{variant}-{seed}"
            place = folder if own == options else RunFolder(folder.path / name, source)
            students.append(Student(variant, seed, own, place))
    launch = options.launch.model_copy(update={"workers": base.jobs})
    # A student is one item: within a worker its stages do their work themselves.
    alone = Launch(threads=options.launch.threads)
    items = [s._replace(options=s.options.model_copy(update={"launch": alone})) for s in students]
    with StudyBars(below, len(items)) as bars:
        make_worker = functools.partial(_worker, base.force)
        for student, _ in map_items(launch, make_worker, bars.starting(items), bars.listen):
            bars.end(student)
            log(messages.student_result(_rows([student])))
    return students


def _with_cache(
    options: Options, folder: RunFolder, own: Path, changes: Mapping[str, object]
) -> tuple[Options, Path]:
    """A variant's options, and the run whose cache it uses: `own`, made if it needs another."""
    changed = config.override(options, changes)
    params = stages.stage_class("teacher-cache").params
    if relevant(changed, params) == relevant(options, params):
        return changed, folder.upstream
    changed = config.override(changed, {"pre_train": options.pre_train or folder.teacher})
    runner.run_stage("teacher-cache", changed, RunFolder(own))
    return changed, own


def _worker(force: bool) -> Callable[[Student], None]:
    def work(student: Student) -> None:
        with captured(student.folder.path):
            log(f"{messages.student(student.variant, student.seed)}, in {student.folder.path}")
            for stage in ("train-student", "eval"):
                runner.run_stage(stage, student.options, student.folder, force=force)

    return work


def _require_parts(options: Options, study: str) -> None:
    """Raises InputError where the recipe lacks what the study switches off, or views."""
    off = {
        "kd_loss.enable": not options.kd_loss.enable or options.kd_loss.alpha == 0,
        "mse.mse_weight": options.mse.mse_weight == 0,
        "forward_mode": options.forward_mode != "all",
    }
    if any(off.values()):
        raise InputError(
            "an ablation switches parts of the recipe off one by one: "
            f"{', '.join(name for name, is_off in off.items() if is_off)} must be on"
        )
    most = max(int(str(v.get("train_student.views", 1))) for v in STUDIES[study].values())
    if options.cache.views < most:
        raise InputError(
            f"the study of {study} needs {most} views a sample, cache.views is "
            f"{options.cache.views}: --set cache.views={most}"
        )


def _rows(students: Iterable[Student]) -> pd.DataFrame:
    """What was measured of students under the first protocol, a row per stream."""
    rows = []
    for variant, seed, _, folder in students:
        protocols = json.loads(folder.metrics.read_text())["protocols"]
        protocol, scores = next(iter(protocols.items()))
        record = read_manifest(folder.manifest("train-student")) or {}
        result: dict[str, Any] = record.get("result", {})
        rows += [
            {
                "variant": variant,
                "seed": seed,
                "run": str(folder.path),
                "protocol": protocol,
                "stream": stream,
                "queries": numbers["queries"],
                "mAP": numbers["mAP"],
                "rank1": numbers["cmc"][0],
                "parameters": result.get("parameters"),
                "macs": result.get("macs"),
                "minutes": record.get("seconds", 0) / 60,
            }
            for stream, numbers in scores["streams"].items()
        ]
    return pd.DataFrame(rows)
