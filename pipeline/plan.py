"""The stages in order: what each needs and makes, and when it runs."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline import config, staleness
from pipeline.run_folder import RunFolder, read_json
from stages import ranks
from stages.data.index import KINDS
from stages.data.layouts import LAYOUTS
from stages.errors import InputError
from stages.files import write_aside
from stages.options import Options
from stages.progress import say, summary

if TYPE_CHECKING:
    from stages.audit import Report as AuditReport

Facts = Mapping[str, object]


class Request(NamedTuple):
    """How a stage is asked to run: may what is there be replaced; by name, everything that its
    output depends on."""

    replace: bool
    made_from: Mapping[str, object]


@dataclass(frozen=True)
class Stage:
    """A command, the file it makes, the stage before it, and what its output depends on."""

    name: str
    before: Callable[[Options, RunFolder], str | None]
    """The stage whose output it needs, if any."""
    output: Callable[[Options, RunFolder], Path]
    files: Callable[[Options, RunFolder], dict[str, Path]]
    """Files that it reads, by their role."""
    pictures: tuple[tuple[str, str], ...]
    """(kind, split) folders that it reads."""
    options: tuple[str, ...]
    run: Callable[[Options, RunFolder, Request], Facts]
    changed: Callable[[Options, RunFolder], list[str]] | None = None
    """Says exactly which pictures are others than the output was made from, where a stage can."""
    differences: Callable[[Options, RunFolder], list[str]] | None = None
    """Says how the output differs from what would be made now, where the output itself knows."""
    grows: str | None = None
    """An option whose larger value adds to the output, and replaces nothing."""
    lasting: bool = False
    """Whether what it made may be used although pictures changed since: that is then only said."""
    parallel: bool = False
    """Whether several processes may run it together."""
    tests: bool = False
    """Whether it reads the evaluated set, which must be there, and not the training set. Running it
    again then finds pictures by content, and costs little: --deep runs it, fresh or not."""
    scratch: Callable[[RunFolder], Path] | None = None
    """A folder that is not needed once the record of the output is written."""


def teacher_weights(options: Options, folder: RunFolder) -> Path:
    """`pre_train` where given, else what train-teacher makes."""
    return options.pre_train or folder.teacher


def targets(options: Options, folder: RunFolder) -> Path | None:
    """The target cache; None for a student that uses no targets.

    A variant of an ablation takes the samples and views of the shared cache even so: it is compared
    with students that do.
    """
    return folder.targets if options.uses_targets or folder.shared is not None else None


# The stage modules import torch; they are imported when they run, not when this is.


def _train_teacher(options: Options, folder: RunFolder, asked: Request) -> Facts:
    from stages import train_teacher as stage

    return stage.run(
        options,
        stage.Inputs(folder.memo, asked.made_from),
        stage.Outputs(
            folder.teacher,
            folder.history("teacher"),
            folder.left_out,
            folder.checkpoints("teacher"),
            folder.tensorboard("teacher"),
            asked.replace,
        ),
    )


def _teacher_cache(options: Options, folder: RunFolder, asked: Request) -> Facts:
    from stages import teacher_cache as stage

    return stage.run(
        options,
        stage.Inputs(teacher_weights(options, folder), folder.memo),
        stage.Outputs(folder.targets, folder.left_out, asked.replace),
    )


def _changed_pictures(options: Options, folder: RunFolder) -> list[str]:
    from stages import teacher_cache as stage

    return stage.changed_pictures(options, folder.targets, folder.memo)


def _cache_differences(options: Options, folder: RunFolder) -> list[str]:
    from stages import teacher_cache as stage

    inputs = stage.Inputs(teacher_weights(options, folder), folder.memo)
    return stage.differences(options, inputs, folder.targets)


def _train_student(options: Options, folder: RunFolder, asked: Request) -> Facts:
    from stages import train_student as stage

    return stage.run(
        options,
        stage.Inputs(
            targets(options, folder),
            teacher_weights(options, folder),
            folder.memo,
            asked.made_from,
        ),
        stage.Outputs(
            folder.student,
            folder.history("student"),
            folder.checkpoints("student"),
            folder.tensorboard("student"),
            asked.replace,
        ),
    )


def _evaluate(options: Options, folder: RunFolder, asked: Request) -> Facts:
    return evaluate(options, folder.student, folder)


def evaluate(
    options: Options, network: Path, folder: RunFolder, kind: str | None = "student"
) -> Facts:
    """Evaluate the student or teacher of a weights file into a run folder."""
    from stages import evaluate as stage

    outputs = stage.Outputs(folder.metrics, folder.descriptors)
    return stage.run(options, stage.Inputs(network, folder.memo, kind), outputs)


def audit(
    run: Path, overrides: Iterable[str], *, samples: int, seed: int, deep: bool
) -> AuditReport:
    """Ask a run's teacher again about some of what its cache says, with the options it was made."""
    from stages import audit as stage

    folder = RunFolder(run)
    record = folder.read_manifest("teacher-cache")
    if record is None or not folder.targets.exists():
        raise InputError(f"{run}: no target cache and its record here. Type make teacher-cache")
    if deep:
        folder.memo.unlink(missing_ok=True)
    options = config.restore(record["config"], overrides)
    inputs = stage.Inputs(folder.targets, teacher_weights(options, folder), folder.memo)
    return stage.run(options, inputs, samples, seed)


def _tested(options: Options) -> str:
    return options.data_test or options.data_train


def _labels(options: Options) -> dict[str, Path]:
    """Files beside the pictures that say more of them."""
    layout = LAYOUTS[_tested(options)]
    return {name: options.test_root / name for name in ("clothes.csv", *layout.scenes.values())}


def _given(role: str, path: Path | None) -> dict[str, Path]:
    return {} if path is None else {role: path}


_ANOTHER = "it isn't what the stage's record speaks of"
_TRAINING = tuple((kind, "train") for kind in KINDS)
"""Which samples are complete, and so used, depends on all four kinds."""
_DATA = ("data_train", "data.incomplete", "data.face_size")

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "train-teacher",
            before=lambda options, folder: None,
            output=lambda options, folder: folder.teacher,
            files=lambda options, folder: _given("teacher.pre_train", options.teacher.pre_train),
            pictures=_TRAINING,
            options=(*_DATA, "teacher", "train_teacher"),
            run=_train_teacher,
            lasting=True,
            scratch=lambda folder: folder.checkpoints("teacher"),
        ),
        Stage(
            "teacher-cache",
            before=lambda options, folder: None if options.pre_train else "train-teacher",
            output=lambda options, folder: folder.targets,
            files=lambda options, folder: {"the teacher": teacher_weights(options, folder)},
            pictures=_TRAINING,
            options=(
                *_DATA,
                "data.body_size",
                "views",
                "cache.views",
                "cache.plain_view",
                "cache.block",
                "cache.precision",
                "cache.logits_dtype",
            ),
            run=_teacher_cache,
            changed=_changed_pictures,
            differences=_cache_differences,
            grows="cache.views",
            parallel=True,
        ),
        Stage(
            "train-student",
            before=lambda options, folder: "teacher-cache" if targets(options, folder) else None,
            output=lambda options, folder: folder.student,
            files=lambda options, folder: (
                _given("the cache", targets(options, folder))
                | _given("student.pre_train", options.student.pre_train)
            ),
            pictures=(("imgs", "train"), ("lr_face", "train")),
            options=(
                "batchid",
                "batchimage",
                "loss",
                *_DATA,
                "data.body_size",
                "views",
                "cache.views",
                "cache.plain_view",
                "student",
                "train_student",
                "forward_mode",
                "kd_loss",
                "mse",
            ),
            run=_train_student,
            parallel=True,
            scratch=lambda folder: folder.checkpoints("student"),
        ),
        Stage(
            "eval",
            before=lambda options, folder: "train-student",
            output=lambda options, folder: folder.metrics,
            files=lambda options, folder: {"the student": folder.student} | _labels(options),
            pictures=tuple((k, s) for k in ("imgs", "lr_face") for s in ("query", "gallery")),
            options=(
                "data_train",
                "data_test",
                "data.face_size",
                "data.body_size",
                "eval.protocols",
                "eval.face_weight",
                "eval.rerank",
                "eval.flip",
                "eval.ranks",
                "eval.dtype",
            ),
            run=_evaluate,
            parallel=True,
            tests=True,
        ),
    )
}


def run_stage(
    name: str,
    options: Options,
    folder: RunFolder,
    *,
    force: bool = False,
    chain: bool = False,
    deep: bool = False,
) -> None:
    """Run a stage, making what is missing before it.

    A fresh output is left as it is unless `force`. A stale one is never replaced silently:
    InputError says why it is stale and what to type. `chain` brings everything before the stage up
    to date, not only what is missing (for `all`). `deep` reads every picture again, whatever its
    time of change.
    """
    _run_stage(STAGES[name], options, folder, force=force, chain=chain, deep=deep)


def evaluate_alone(
    options: Options, network: Path, folder: RunFolder, *, force: bool, deep: bool
) -> None:
    """Evaluate a weights file on a data root: no cache, no teacher, no earlier stage is needed.

    Raises InputError where the file isn't there, or the folder is that of a training.
    """
    if not network.is_file():
        raise InputError(f"{network}: no such file. --checkpoint takes a weights file")
    if any(folder.manifest(name).exists() for name in STAGES if name != "eval"):
        raise InputError(
            f"{folder.path}: holds other stages of a run. Type make eval for its own student, or "
            "give another folder with --run"
        )
    plain = STAGES["eval"]
    alone = replace(
        plain,
        before=lambda options, folder: None,
        files=lambda options, folder: {"the network": network} | _labels(options),
        # A teacher sees HR faces.
        pictures=(*plain.pictures, ("hr_face", "query"), ("hr_face", "gallery")),
        run=lambda options, folder, asked: evaluate(options, network, folder, kind=None),
    )
    _run_stage(alone, options, folder, force=force, deep=deep)


def _run_stage(
    stage: Stage,
    options: Options,
    folder: RunFolder,
    *,
    force: bool = False,
    chain: bool = False,
    deep: bool = False,
) -> None:
    name = stage.name
    if deep:
        folder.memo.unlink(missing_ok=True)
    before = _before(stage, options, folder)
    if before is not None:
        exists = before.output(options, folder).exists()
        if not exists:
            say(f"{name} needs {before.output(options, folder)}: running {before.name} first")
        if chain or not exists:
            run_stage(before.name, options, folder, chain=chain)
        _refuse_stale_upstream(before, options, folder, deep)

    output = stage.output(options, folder)
    stale = why_stale(stage, options, folder, deep) if output.exists() else []
    unrecorded = _unrecorded(stage, stale, options, folder)
    harmless = unrecorded or _grows(stage, stale, options, folder)
    again = deep and stage.tests and not stale
    if output.exists() and not (force or harmless or again):
        if not stale:
            say(f"{name}: {output} is fresh (FORCE=1 or --force runs it anyway)")
            return
        raise InputError(
            f"{name}: {output} is stale: {'; '.join(stale)}. It is not replaced silently. Type "
            f"make {name} FORCE=1 (or deskpro {name} … --force) to replace it, or set RUN or tag "
            "to keep it"
        )
    if unrecorded and stage.differences is None and not force:
        _run_again(stage, options, folder)
    else:
        _run(stage, options, folder, force)


def _run_again(stage: Stage, options: Options, folder: RunFolder) -> None:
    """Make an output again that lacks its record, and keep what was there if it was another."""
    output = stage.output(options, folder)
    if ranks.rank() > 0:
        _run(stage, options, folder, replace=False)
        return
    kept = output.with_name(output.name + ".unrecorded")
    while kept.exists():
        kept = kept.with_name(kept.name + "+")
    say(f"{stage.name}: {output} has no record; until it is made again it is kept as {kept}")
    output.rename(kept)
    _run(stage, options, folder, replace=False)
    if _identity(kept) == _identity(output):
        kept.unlink()
    else:
        say(f"{stage.name}: {kept} is kept: it was another one")


def needed(options: Options) -> list[str]:
    """The stages that a recipe needs, in order."""
    skipped = set()
    if not options.uses_targets:
        skipped |= {"train-teacher", "teacher-cache"}
    elif options.pre_train is not None:
        skipped |= {"train-teacher"}
    return [name for name in STAGES if name not in skipped]


def why_stale(stage: Stage, options: Options, folder: RunFolder, deep: bool = False) -> list[str]:
    """Why a stage's existing output isn't what it would make now; empty when it is.

    deep: where the output knows the content of its pictures, compare that in any case.
    """
    record = folder.read_manifest(stage.name)
    output = stage.output(options, folder)
    if record is not None and output.exists() and record.get("output") != _identity(output):
        return [_ANOTHER]
    inputs = _inputs(stage, options, folder)
    reasons = staleness.reasons(record, staleness.relevant(options, stage.options), inputs)
    if stage.changed is None or not output.exists():
        return reasons
    # By size and time of change some picture is another one; the output itself knows which.
    vague = {staleness.changed(role) for role in _pictures(stage, options)}
    if not deep and not vague & {*reasons}:
        return reasons
    return [why for why in reasons if why not in vague] + stage.changed(options, folder)


def _grows(stage: Stage, stale: list[str], options: Options, folder: RunFolder) -> bool:
    """Whether an output is stale only for lacking what a larger option adds to it."""
    record = folder.read_manifest(stage.name)
    if record is None or stage.grows is None or len(stale) != 1:
        return False
    before = record["options"].get(stage.grows)
    now = staleness.relevant(options, [stage.grows])[stage.grows]
    return stale[0].startswith(f"{stage.grows} was ") and now > before


def _unrecorded(stage: Stage, stale: list[str], options: Options, folder: RunFolder) -> bool:
    """Whether an output is what would be made now, though its record doesn't say so: a kill came
    between the two. It is then made again, which costs little: from the last checkpoint, say."""
    if stale not in ([staleness.NO_RECORD], [_ANOTHER]):
        return False
    if stage.differences is not None:
        return not stage.differences(options, folder)
    begun = read_json(folder.begun(stage.name))
    now = staleness.relevant(options, stage.options), _inputs(stage, options, folder)
    return begun is not None and not staleness.reasons(begun, *now)


def _before(stage: Stage, options: Options, folder: RunFolder) -> Stage | None:
    name = stage.before(options, folder)
    return None if name is None else STAGES[name]


def _refuse_stale_upstream(
    stage: Stage | None, options: Options, folder: RunFolder, deep: bool
) -> None:
    """Everything before must be what the options say, as far as it is still there to be asked.

    An output without a record was brought from elsewhere: it is taken as it is.
    """
    while stage is not None:
        output = stage.output(options, folder)
        if output.exists() and folder.read_manifest(stage.name) is not None:
            stale = why_stale(stage, options, folder, deep)
            if stage.lasting and {*stale} <= {
                staleness.changed(r) for r in _pictures(stage, options)
            }:
                for why in stale:
                    say(f"{output} is used as it is, though {why}")
            elif stale and not _unrecorded(stage, stale, options, folder):
                force = "" if _grows(stage, stale, options, folder) else " FORCE=1"
                raise InputError(
                    f"{output} is stale: {'; '.join(stale)}. Type make {stage.name}{force} to "
                    "bring it up to date, or set the options back"
                )
        stage = _before(stage, options, folder)


def _inputs(stage: Stage, options: Options, folder: RunFolder) -> dict[str, str | None]:
    if stage.tests and not LAYOUTS[_tested(options)].bodies(options.test_root).is_dir():
        raise InputError(
            f"{options.test_root}: no such folder, or none of body pictures in it. Set "
            "data.test_root, or data.root"
        )
    return staleness.digests(stage.files(options, folder), _pictures(stage, options))


def _pictures(stage: Stage, options: Options) -> dict[str, tuple[Path, str]]:
    """The folders of pictures that a stage reads, by role, each with the pattern of its files."""
    root, dataset = options.data.root, options.data_train
    if stage.tests:
        root, dataset = options.test_root, _tested(options)
    layout = LAYOUTS[dataset]
    return {
        f"{kind} of {split}": (root / kind if layout.prepared else root, layout.files[split])
        for kind, split in stage.pictures
        if layout.prepared or kind == "imgs"
    }


def _identity(output: Path) -> str | None:
    """The content of an output, as its record names it: a crash or a copy can part the two."""
    return staleness.digests({"output": output}, {})["output"]


def _run(stage: Stage, options: Options, folder: RunFolder, replace: bool) -> None:
    if ranks.size() > 1 and not stage.parallel:
        raise InputError(
            f"{stage.name} runs in one process, {ranks.size()} were started. Run it without "
            "torchrun first"
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    inputs = _inputs(stage, options, folder)
    started = time.monotonic()
    asked = {"options": staleness.relevant(options, stage.options), "inputs": inputs}
    if ranks.rank() == 0:
        with write_aside(folder.begun(stage.name)) as aside:
            aside.write_text(json.dumps(asked) + "\n")
    made_from = {**asked["options"], **asked["inputs"]}
    try:
        facts = stage.run(options, folder, Request(replace, made_from))
    except BaseException:
        folder.begun(stage.name).unlink(missing_ok=True)
        raise
    if ranks.rank() > 0:
        _meet()
        return
    seconds = time.monotonic() - started
    with write_aside(folder.path / "config.yaml") as aside:
        aside.write_text(config.dump(options))
    folder.write_manifest(
        stage.name,
        {
            "stage": stage.name,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            **asked,
            "output": _identity(stage.output(options, folder)),
            "config": options.model_dump(mode="json"),
            "facts": dict(facts),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("deskpro", "torch", "zarr", "numpy", "pillow")},
        },
    )
    folder.begun(stage.name).unlink(missing_ok=True)
    if stage.scratch is not None:
        shutil.rmtree(stage.scratch(folder), ignore_errors=True)
    _meet()
    summary(f"{stage.name}: done in {_duration(seconds)}", facts)


def _meet() -> None:
    """Wait for the other processes: none looks for what the first hasn't written yet."""
    with ranks.join() as team:
        team.share(None)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
