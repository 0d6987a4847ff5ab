"""The stages in order: what each needs and makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deskpro.pipeline import config, staleness
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data.index import KINDS
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.preparation.samples import is_own_folder

if TYPE_CHECKING:
    from deskpro.stages.cache_tools import Report as AuditReport

Facts = Mapping[str, object]


class Request(NamedTuple):
    """How a stage is asked to run: may what is there be replaced; by name, everything that its
    output depends on."""

    replace: bool
    provenance: Mapping[str, object]


@dataclass(frozen=True)
class Stage:
    """A command, the file it makes, the stage before it, and what its output depends on."""

    name: str
    before: Callable[[Options, RunFolder], str | None]
    output: Callable[[Options, RunFolder], Path]
    files: Callable[[Options, RunFolder], dict[str, Path]]
    """Files that it reads, by their role."""
    images: tuple[tuple[str, str], ...]
    """(kind, split) folders that it reads."""
    options: tuple[str, ...]
    run: Callable[[Options, RunFolder, Request], Facts]
    changed: Callable[[Options, RunFolder], list[str]] | None = None
    """Says exactly which images are others than the output was made from, where a stage can."""
    differences: Callable[[Options, RunFolder], list[str]] | None = None
    """Says how the output differs from what would be made now, where the output itself knows."""
    grows: str | None = None
    """An option whose larger value adds to the output, and replaces nothing."""
    lasting: bool = False
    """Whether what it made may be used although images changed since: that is then only said."""
    parallel: bool = False
    """Whether several processes may run it together."""
    tests: bool = False
    """Whether it reads the evaluated set, which must be there, and not the training set."""
    quick_again: bool = False
    """Whether running it again finds by content what changed, and does no more: --deep runs it,
    fresh or not."""
    standing: bool = False
    """Whether all that comes after goes on reading what it made: it must be there, and whole."""
    scratch: Callable[[RunFolder], Path] | None = None
    """A folder that is not needed once the record of the output is written."""
    sources: Callable[[Options], dict[str, tuple[Path, str]]] | None = None
    """Other folders of images that it reads, as `folders` gives them."""
    home: Callable[[Options, RunFolder], RunFolder] = lambda options, folder: folder
    """Where its record lies: in the run folder, unless several runs share what it makes."""

    def upstream(self, options: Options, folder: RunFolder) -> Stage | None:
        """The stage whose output it needs, if any."""
        name = self.before(options, folder)
        return None if name is None else STAGES[name]

    def folders(self, options: Options) -> dict[str, tuple[Path, str]]:
        """The folders of images that it reads, by role, each with the pattern of its files."""
        if self.sources is not None:
            return self.sources(options)
        root, dataset = options.data.root, options.data_train
        if self.tests:
            root, dataset = options.test_root, _tested(options)
        layout = LAYOUTS[dataset]
        prepared = layout.prepared(root)
        return {
            f"{kind} of {split}": (root / kind if prepared else root, layout.files[split])
            for kind, split in self.images
            if prepared or kind == "imgs"
        }

    def inputs(self, options: Options, folder: RunFolder) -> dict[str, str | None]:
        """What it would be made from, by role: a digest, or None for what isn't here.

        Raises InputError where the evaluated set, which must be, isn't.
        """
        if self.tests and not LAYOUTS[_tested(options)].bodies(options.test_root).is_dir():
            raise InputError(
                f"{options.test_root}: no such folder, or none of body images in it. Set "
                "data.test_root, or data.root"
            )
        return staleness.digests(self.files(options, folder), self.folders(options))


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


def _prepare(options: Options, folder: RunFolder, asked: Request) -> Facts:
    from deskpro.stages import prepare as stage

    root = options.data.root
    outputs = stage.Outputs(root / "prepare.csv", root / "prepare.html")
    return stage.run(options, stage.Inputs(folder.file_index), outputs)


def _train_teacher(options: Options, folder: RunFolder, asked: Request) -> Facts:
    from deskpro.stages import train_teacher as stage

    return stage.run(
        options,
        stage.Inputs(folder.file_index, asked.provenance),
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
    from deskpro.stages import teacher_cache as stage

    return stage.run(
        options,
        stage.Inputs(teacher_weights(options, folder)),
        stage.Outputs(folder.targets, folder.left_out, asked.replace),
    )


def _changed_images(options: Options, folder: RunFolder) -> list[str]:
    from deskpro.cache.fingerprint import describe
    from deskpro.stages import teacher_cache as stage

    return describe(stage.changed_images(options, folder.targets))


def _cache_differences(options: Options, folder: RunFolder) -> list[str]:
    from deskpro.cache.fingerprint import describe
    from deskpro.stages import teacher_cache as stage

    inputs = stage.Inputs(teacher_weights(options, folder))
    return describe(stage.differences(options, inputs, folder.targets))


def _train_student(options: Options, folder: RunFolder, asked: Request) -> Facts:
    from deskpro.stages import train_student as stage

    return stage.run(
        options,
        stage.Inputs(
            targets(options, folder),
            teacher_weights(options, folder),
            folder.file_index,
            asked.provenance,
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
    from deskpro.stages import evaluate as stage

    outputs = stage.Outputs(folder.metrics, folder.features)
    return stage.run(options, stage.Inputs(network, folder.file_index, kind), outputs)


def audit(
    run: Path, overrides: Iterable[str], *, samples: int, seed: int, deep: bool
) -> AuditReport:
    """Ask a run's teacher again about some of what its cache says, with the options it was made."""
    from deskpro.stages import cache_tools

    folder = RunFolder(run)
    record = folder.read_manifest("teacher-cache")
    if record is None or not folder.targets.exists():
        raise InputError(f"{run}: no target cache and its record here. Type make teacher-cache")
    options = config.restore(record["config"], overrides)
    return cache_tools.audit(options, folder, samples=samples, seed=seed, deep=deep)


def _finished(store: Path) -> Path:
    """The store, or a path that does not exist where one of its groups is not sealed."""
    journals = store.rglob("index/journal.jsonl")
    unsealed = [path.parent for path in journals if not path.with_name("zarr.json").exists()]
    return store / "unfinished" if unsealed else store


def _tested(options: Options) -> str:
    return options.data_test or options.data_train


def labels(options: Options) -> dict[str, Path]:
    """Files beside the images that say more of them."""
    layout = LAYOUTS[_tested(options)]
    return {name: options.test_root / name for name in ("clothes.csv", *layout.scenes.values())}


def _prepared(options: Options, folder: RunFolder) -> str | None:
    """The stage that makes `data.root`, for a recipe that says how."""
    return None if options.prepare is None else "prepare"


def _raw(options: Options) -> dict[str, tuple[Path, str]]:
    """What preparation is made from, by role."""
    settings = options.prepare
    if settings is None:
        return {}
    found: dict[str, tuple[Path, str]] = {}
    if settings.root is not None:
        layout = LAYOUTS[options.data_train]
        if is_own_folder(settings.root, options.data_train):
            found["the raw images"] = (settings.root, "**/*")
        else:
            for split, pattern in layout.files.items():
                found[f"the raw images of {split}"] = (layout.bodies(settings.root), pattern)
    if settings.parsing.method == "labels" and settings.parsing.labels is not None:
        found["the label maps"] = (settings.parsing.labels, "**/*")
    if settings.restoration.method == "pictures" and settings.restoration.pictures is not None:
        found["the HR pictures"] = (settings.restoration.pictures, "**/*")
    return found


def _models(options: Options) -> dict[str, Path]:
    """The weights that preparation uses, by option."""
    settings = options.prepare
    if settings is None:
        return {}
    found = _given("prepare.face.model", settings.face.model)
    found |= _given("prepare.restoration.model", settings.restoration.model)
    if settings.parsing.model is not None:
        for name in _NETWORK_FILES:
            found[f"prepare.parsing.model, {name}"] = Path(settings.parsing.model) / name
    if settings.root is not None:
        found |= {
            name: settings.root / name
            for name in ("clothes.csv", *LAYOUTS[options.data_train].scenes.values())
        }
    return found


def _given(role: str, path: Path | None) -> dict[str, Path]:
    return {} if path is None else {role: path}


_NETWORK_FILES = (
    "config.json", "preprocessor_config.json", "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin",
)  # fmt: skip
"""Of a folder in the format of transformers; those that it lacks don't count."""
_TRAINING = tuple((kind, "train") for kind in KINDS)
"""Which samples are complete, and so used, depends on all four kinds."""
_DATA = ("data_train", "data.incomplete", "data.face_size")
_PREPARE = ("root", "own", "steps", "parsing", "mask", "face", "restoration", "unusable")

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "prepare",
            before=lambda options, folder: None,
            output=lambda options, folder: options.data.root / "prepare.csv",
            files=lambda options, folder: _models(options),
            images=(),
            sources=_raw,
            options=("data_train", *(f"prepare.{name}" for name in _PREPARE)),
            run=_prepare,
            parallel=True,
            quick_again=True,
            standing=True,
            home=lambda options, folder: RunFolder(options.data.root / ".prepare"),
        ),
        Stage(
            "train-teacher",
            before=_prepared,
            output=lambda options, folder: folder.teacher,
            files=lambda options, folder: _given("teacher.pre_train", options.teacher.pre_train),
            images=_TRAINING,
            options=(*_DATA, "teacher", "train_teacher"),
            run=_train_teacher,
            lasting=True,
            scratch=lambda folder: folder.checkpoints("teacher"),
        ),
        Stage(
            "teacher-cache",
            before=lambda options, folder: (
                _prepared(options, folder) if options.pre_train else "train-teacher"
            ),
            output=lambda options, folder: _finished(folder.targets),
            files=lambda options, folder: {"the teacher": teacher_weights(options, folder)},
            images=_TRAINING,
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
            changed=_changed_images,
            differences=_cache_differences,
            grows="cache.views",
        ),
        Stage(
            "train-student",
            before=lambda options, folder: (
                "teacher-cache" if targets(options, folder) else _prepared(options, folder)
            ),
            output=lambda options, folder: folder.student,
            files=lambda options, folder: (
                _given("the cache", targets(options, folder))
                | _given("student.pre_train", options.student.pre_train)
            ),
            images=(("imgs", "train"), ("lr_face", "train")),
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
            files=lambda options, folder: {"the student": folder.student} | labels(options),
            images=tuple((k, s) for k in ("imgs", "lr_face") for s in ("query", "gallery")),
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
            ),
            run=_evaluate,
            tests=True,
            quick_again=True,
        ),
    )
}


def needed(options: Options) -> list[str]:
    """The stages that a recipe needs, in order."""
    skipped = {"prepare"} if options.prepare is None else set()
    if not options.uses_targets:
        skipped |= {"train-teacher", "teacher-cache"}
    elif options.pre_train is not None:
        skipped |= {"train-teacher"}
    return [name for name in STAGES if name not in skipped]
