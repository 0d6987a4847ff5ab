"""Many students of one teacher: ablations and sweeps, trained from one cache, in one table."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from deskpro.cache.files import write_aside, write_text
from deskpro.pipeline import config, messages, runner, stages
from deskpro.stages.base.engine import map_items
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import LEAVES, Launch, Options, relevant
from deskpro.stages.base.progress import log, table
from deskpro.stages.base.run_folder import RunFolder, read_json

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
BASES = tuple(next(iter(variants)) for variants in STUDIES.values())


class Student(NamedTuple):
    """A variant with a seed, its options and its folder."""

    variant: str
    seed: int
    options: Options
    folder: RunFolder


def ablation(
    options: Options, folder: RunFolder, force: bool, *, study: str, seeds: int, jobs: int
) -> str:
    """Run a study and write its table and rows into the run folder; the names of the two."""
    rows = ablation_rows(options, folder, force, study=study, seeds=seeds, jobs=jobs)
    add = f" --study {study}" * (study != "parts")
    command = messages.command(f"ablation{add} --seeds {seeds} --jobs {jobs}")
    path = folder.path / ("ablation.md" if study == "parts" else f"ablation-{study}.md")
    write_text(
        path, messages.ablation_table(rows, summarise(rows), next(iter(STUDIES[study])), command)
    )
    write_text(path.with_suffix(".json"), json.dumps(rows.to_dict("records"), indent=1) + "\n")
    return f"{path}, {path.with_suffix('.json').name}"


def ablation_rows(
    options: Options,
    folder: RunFolder,
    force: bool,
    *,
    study: str = "parts",
    variants: Iterable[str] | None = None,
    seeds: int = 3,
    jobs: int = 1,
) -> pd.DataFrame:
    """Train and evaluate a study's variants with every seed; an interrupted call is resumed.

    The run's own student serves as the variant that has its options. The teacher, which sees HR
    faces, is the last variant: the upper reference of `face`.

    Returns:
        A row per variant, seed and stream: variant, seed, stream, mAP, rank1 (shares in 0..1).
        Seeds count up from `train_student.seed`.
    """
    _require_parts(options, study)
    runner.run_stage("teacher-cache", options, folder, chain=True)
    chosen = {variant: STUDIES[study][variant] for variant in variants or STUDIES[study]}
    students = members(options, folder, chosen, seeds, "ablation")
    train(students, options, jobs, force)
    teacher = RunFolder(folder.path / "ablation" / "teacher", folder.upstream)
    _evaluate_teacher(options, folder, teacher)
    students.append(Student("teacher", options.train_teacher.seed, options, teacher))
    return pd.DataFrame([row for student in students for row in _rows(student)])


def sweep(
    options: Options,
    folder: RunFolder,
    force: bool,
    *,
    grids: Iterable[str],
    seeds: int,
    jobs: int,
) -> Path:
    """Train and evaluate every combination with every seed; an interrupted call is resumed.

    Writes `sweep.csv` into the run folder, a row per combination and stream: combination, stream,
    seeds, mAP, mAP_sd, rank1, rank1_sd (percent; sd with n−1), parameters, macs, minutes (mean of
    training), and prints it.
    """
    variants = combinations(grids)
    for name, changes in variants.items():  # all must be possible, before any work
        try:
            config.override(options, changes)
        except ValueError as error:
            raise InputError(f"--grid: {name} is impossible: {error}") from None
    runner.run_stage("teacher-cache", options, folder, chain=True)
    students = members(options, folder, variants, seeds, "sweep")
    train(students, options, jobs, force)
    rows = pd.DataFrame([row for student in students for row in _rows(student)])
    found = (
        rows.groupby(["variant", "stream"], sort=False)
        .agg(
            seeds=("seed", "size"),
            mAP=("mAP", lambda values: 100 * values.mean()),
            mAP_sd=("mAP", lambda values: 100 * values.std()),
            rank1=("rank1", lambda values: 100 * values.mean()),
            rank1_sd=("rank1", lambda values: 100 * values.std()),
            parameters=("parameters", "first"),
            macs=("macs", "first"),
            minutes=("minutes", "mean"),
        )
        .reset_index()
        .rename(columns={"variant": "combination"})
    )
    with write_aside(folder.path / "sweep.csv") as aside:
        found.to_csv(aside, index=False)
    table("sweep", *messages.sweep_table(found))
    return folder.path / "sweep.csv"


def combinations(grids: Iterable[str]) -> Variants:
    """`key=value,value …` → name of each combination → its options. Values are YAML.

    Raises:
        InputError: a grid is malformed, or an option is named twice.
    """
    axes: dict[str, list[object]] = {}
    for grid in grids:
        key, _, values = grid.partition("=")
        found = config.parse(f"[{values}]")
        if key not in LEAVES or not values or not isinstance(found, list):
            raise InputError(
                f"--grid {grid}: must be OPTION=VALUE,VALUE…, such as kd_loss.T=1,2,5; the options "
                "are those of the recipe"
            )
        if key in axes:
            raise InputError(f"--grid {grid}: {key} has a grid already")
        axes[key] = found
    return {
        ",".join(f"{key}={value}" for key, value in zip(axes, values, strict=True)): dict(
            zip(axes, values, strict=True)
        )
        for values in itertools.product(*axes.values())
    }


def members(
    options: Options, folder: RunFolder, variants: Variants, seeds: int, below: str
) -> list[Student]:
    """Every variant with every seed, counted up from the recipe's; makes the caches they need."""
    first = options.train_student.seed
    students = []
    for variant, changes in variants.items():
        changed, source = _with_cache(options, folder, variant, changes, below)
        for seed in range(first, first + seeds):
            own = config.override(changed, {"train_student.seed": seed})
            place = _place(options, folder, own, f"{below}/{variant}-{seed}", source)
            students.append(Student(variant, seed, own, place))
    return students


def _with_cache(
    options: Options, folder: RunFolder, variant: str, changes: dict[str, object], below: str
) -> tuple[Options, Path]:
    """A variant's options, and the run whose cache it uses: one of its own if it needs another."""
    changed = config.override(options, changes)
    params = stages.stage_class("teacher-cache").params
    if relevant(changed, params) == relevant(options, params):
        return changed, folder.upstream
    changed = config.override(changed, {"pre_train": options.pre_train or folder.teacher})
    own = RunFolder(folder.path / below / variant)
    runner.run_stage("teacher-cache", changed, own)
    return changed, own.path


def _place(
    options: Options, folder: RunFolder, changed: Options, name: str, source: Path
) -> RunFolder:
    """A student's folder: the run's own where it has the run's options.

    Students that differ in the seed alone are shared by all studies.
    """
    if changed == options:
        return folder
    seed = changed.train_student.seed
    if config.override(options, {"train_student.seed": seed}) == changed:
        name = f"ablation/both-{seed}"
    return RunFolder(folder.path / name, source)


def train(students: Iterable[Student], options: Options, jobs: int, force: bool) -> None:
    """Train and evaluate the students that are not fresh, `jobs` at a time."""
    launch = options.launch.model_copy(update={"workers": jobs})
    # A student is one item: within a worker its stages do their work themselves.
    alone = Launch(threads=options.launch.threads)
    items = [s._replace(options=s.options.model_copy(update={"launch": alone})) for s in students]
    for _ in map_items(launch, functools.partial(_worker, force), items):
        pass


def _worker(force: bool) -> Callable[[Student], None]:
    def work(student: Student) -> None:
        log(f"{student.variant}, seed {student.seed}, in {student.folder.path}")
        for stage in ("train-student", "eval"):
            runner.run_stage(stage, student.options, student.folder, force=force)

    return work


def _evaluate_teacher(options: Options, folder: RunFolder, home: RunFolder) -> None:
    from deskpro.stages.evaluate import Evaluate

    weights = options.pre_train or folder.teacher
    stage = Evaluate(options, home, weights, kind="teacher")
    runner.run_stage(stage, options, home, update=True)


def _require_parts(options: Options, study: str) -> None:
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


def _rows(student: Student) -> Iterator[dict[str, object]]:
    """What was measured of a student under the first protocol, a row per stream."""
    protocols = json.loads(student.folder.metrics.read_text())["protocols"]
    record = read_json(student.folder.manifest("train-student")) or {}
    result: dict[str, Any] = record.get("result", {})
    for stream, numbers in next(iter(protocols.values()))["streams"].items():
        yield {
            "variant": student.variant,
            "seed": student.seed,
            "stream": stream,
            "mAP": numbers["mAP"],
            "rank1": numbers["cmc"][0],
            "parameters": result.get("parameters"),
            "macs": result.get("macs"),
            "minutes": record.get("seconds", 0) / 60,
        }


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (n−1) over seeds, in percent, and the gain over the base.

    Returns:
        A row per variant and stream: variant, stream, seeds, mAP, mAP_sd, rank1, rank1_sd, gain (of
        mAP over the study's first variant; nan without it), pooled_sd (of the two mAPs). An sd of
        one seed is nan.
    """
    found = (
        rows.assign(mAP=100 * rows["mAP"], rank1=100 * rows["rank1"])
        .groupby(["variant", "stream"], sort=False)
        .agg(
            seeds=("seed", "size"),
            mAP=("mAP", "mean"),
            mAP_sd=("mAP", "std"),
            rank1=("rank1", "mean"),
            rank1_sd=("rank1", "std"),
        )
        .reset_index()
    )
    base = found[found["variant"].isin(BASES)].set_index("stream").reindex(found["stream"])
    found["gain"] = found["mAP"] - base["mAP"].to_numpy()
    found["pooled_sd"] = ((found["mAP_sd"] ** 2 + base["mAP_sd"].to_numpy() ** 2) / 2) ** 0.5
    return found
