"""Every option has its stages: what a stage reads is declared, and what is declared matters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deskpro.cache.file_index import FileIndex
from deskpro.pipeline import config, runner
from deskpro.pipeline.stages import STAGES, make, stage_class
from deskpro.stages.base import training_options
from deskpro.stages.base.options import Enrich, Evaluation, Options, Rerank
from deskpro.stages.base.params import (
    LEAVES,
    WITHOUT_EFFECT,
    flatten,
    leaf_of,
    names_option,
    relevant,
)
from deskpro.stages.base.prepare_options import Prepare
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.section import Section
from deskpro.stages.base.stage import Digests, _changes
from tests.conftest import Project, slow

NAME = r"(?P<pid>\d+)_.*"
OTHERS = {"other": training_options.OtherTeacher(weights=Path("other.safetensors"))}


EVERYTHING = Options(
    prepare=Prepare(),
    teachers=OTHERS,
    eval=Evaluation(rerank=Rerank(enable=True), enrich=Enrich(enable=True)),
)
"""Each part is on, and there is a further teacher."""


def declared(stage: str) -> set[str]:
    """The options that a stage declares."""
    return {*relevant(EVERYTHING, stage_class(stage).params)}


def test_every_option_is_of_a_stage_or_has_no_effect() -> None:
    of_stages = {leaf_of(name) for stage in STAGES for name in declared(stage)}
    assert LEAVES.keys() - of_stages - WITHOUT_EFFECT.keys() == set()
    assert all(WITHOUT_EFFECT.values())


def test_every_param_of_a_stage_is_an_option() -> None:
    for stage in STAGES:
        for param in stage_class(stage).params:
            assert any(names_option(param, name) for name in LEAVES), (stage, param)


class Recorder:
    """Options that note which of them are read."""

    def __init__(self, section: Section, read: set[str], prefix: str = "") -> None:
        self.__dict__.update(_section=section, _read=read, _prefix=prefix)

    def __getattr__(self, name: str) -> Any:
        section, prefix = self._section, self._prefix
        attribute = getattr(type(section), name, None)
        if isinstance(attribute, property):
            assert attribute.fget is not None
            return attribute.fget(self)
        if name not in type(section).model_fields:
            if name in ("model_dump", "model_copy"):
                self._read.update(prefix + leaf for leaf in flatten(section.model_dump()))
                return getattr(section, name)
            return attribute.__get__(self) if callable(attribute) else getattr(section, name)
        value = getattr(section, name)
        if isinstance(value, Section):
            return Recorder(value, self._read, f"{prefix}{name}.")
        if isinstance(value, dict):
            place = f"{prefix}{name}"
            return {k: Recorder(each, self._read, f"{place}.{k}.") for k, each in value.items()}
        self._read.add(prefix + name)
        return value


@pytest.mark.parametrize("live", [False, *slow(True)])
def test_a_stage_reads_only_what_it_declares(live: bool, project: Project) -> None:
    overrides = ["train_student.live_teacher=true"] * live
    options = config.load(project.config, overrides)
    folder, before = RunFolder(project.run), set[str]()
    for name in ("train-teacher", "teacher-cache", "train-student", "eval"):
        read: set[str] = set()
        stage = make(name, options, folder)
        run = stage.run

        def recorded(job: Any, stage: Any = stage, run: Any = run, read: Any = read) -> Any:
            stage.options = Recorder(options, read)
            try:
                return run(job)
            finally:
                stage.options = options

        stage.run = recorded  # type: ignore[method-assign]
        runner.run_stage(stage, options, folder)
        # What an earlier stage declares is read to compare its output with the options.
        before |= declared(name)
        assert read - before - WITHOUT_EFFECT.keys() == set(), name
        assert read


OTHER = {
    "eval.enrich.score": 0.5,
    "data.name": NAME, "data_train": "prcc", "data_test": "prcc", "forward_mode": "face",
    "teacher.block": "published",
    "student.block": "published", "cache.logits_dtype": "int8", "cache.embedding_dtype": "int8",
    "eval.protocols": ["market"], "eval.gallery_network": "teacher", "eval.unit": "tracklet",
    "eval.ranks": [1, 2], "data.body_size": [128, 64], "data.face_size": [64, 64],
    "data.incomplete": "leave-out", "views.erase_area": [0.1, 0.2],
    "views.erase_aspect": [1.0, 1.5],
    "teacher.heads": "global", "student.heads": "global",
    "teacher.backbone": "other", "student.backbone": "other",
    "teacher.init": "published", "student.init": "published", "schedule": "epoch",
    "train_student.schedule": "epoch",
    "teacher.width": 0.5, "student.width": 0.5, "views.enlarge": 1.5,
    "teachers.other.input": "imgs", "teachers.other.backbone": "timm:resnet18",
    "teachers.other.stream": "body", "teachers.other.kd": 0.5,
}  # fmt: skip
"""Another value for options whose default has no obvious neighbour."""


def other(name: str, value: Any) -> Any:
    last = name.removeprefix("train_teacher.")
    if name in OTHER or last in OTHER:
        return OTHER.get(name, OTHER.get(last))
    if name.endswith(".precision"):
        return "bfloat16" if value != "bfloat16" else "float16"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.5
    return 3 if value is None else value


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "prepare"])
def test_every_param_that_changes_is_a_reason(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_options, "BACKBONE_NAMES", ("osnet", "other"))
    options, folder = EVERYTHING.model_copy(update={"prepare": None}), RunFolder(tmp_path)
    digests = Digests(FileIndex(tmp_path / "index"))
    for name in sorted(declared(stage)):
        value = flatten(options.model_dump())[name]
        changes = {name: other(name, value)}
        if name.endswith(".kd"):  # of imported logits alone
            changes["teachers.other.weights"] = None
        changed = config.override(options, changes)
        made = make(stage, options, folder)
        record = {
            "outs": made.out_digests(digests),
            "params": relevant(options, made.params),
            "deps": made.digests(digests),
        }
        assert not made.stale(record, digests)
        reasons = make(stage, changed, folder).stale(record, digests)
        assert name in {reason.name for reason in reasons}, name


def test_what_never_was_is_no_reason() -> None:
    assert not _changes("dep", {"a": None, "gone": "1"}, {"b": None, "gone": None})
    assert [each.name for each in _changes("dep", {"old": "1"}, {"new": "2"})] == ["new", "old"]
    before, now = {"teachers.a.stream": None, "teachers.a.kd": 0.5}, {"teachers.b.stream": None}
    assert [each.name for each in _changes("param", before, now)] == ["teachers.a.kd"]


# Records that lack an option


@pytest.fixture
def evaluated(tmp_path: Path) -> tuple[Callable[..., list[str]], dict[str, Any]]:
    """`reasons(change)`, why an evaluation is stale for other options; and its record."""
    folder, digests = RunFolder(tmp_path), Digests(FileIndex(tmp_path / "index"))
    made = make("eval", Options(), folder)
    record = {"outs": made.out_digests(digests), "deps": made.digests(digests)}
    record["params"] = relevant(Options(), made.params)

    def reasons(**changes: Any) -> list[str]:
        options = config.override(Options(), {n.replace("__", "."): v for n, v in changes.items()})
        return [reason.name for reason in make("eval", options, folder).stale(record, digests)]

    return reasons, record


def test_the_options_of_a_part_that_is_off_have_no_effect(
    evaluated: tuple[Callable[..., list[str]], dict[str, Any]],
) -> None:
    reasons, _ = evaluated
    assert reasons(eval__rerank__k1=7, eval__enrich__far=0.1) == []
    on = {"eval__rerank__enable": True}
    assert reasons(**on) == ["eval.rerank.enable"]
    assert {*reasons(**on, eval__rerank__k1=7)} == {"eval.rerank.enable", "eval.rerank.k1"}
    kd = config.override(Options(), {"kd_loss.enable": False, "kd_loss.T": 9})
    assert [*relevant(kd, ("kd_loss",))] == ["kd_loss.enable"]


def test_a_record_of_before_an_option_was_added_means_its_default(
    evaluated: tuple[Callable[..., list[str]], dict[str, Any]],
) -> None:
    reasons, record = evaluated
    for name in ("data.name", "eval.flip", "eval.ranks", "data.body_size"):
        record["params"].pop(name)
    assert reasons() == []
    assert reasons(eval__flip=False) == ["eval.flip"]
    assert reasons(data__body_size=[64, 32]) == ["data.body_size"]


def test_a_record_with_an_option_that_was_removed_is_stale(
    evaluated: tuple[Callable[..., list[str]], dict[str, Any]],
) -> None:
    reasons, record = evaluated
    record["params"]["eval.dtype"] = "float32"
    assert reasons() == ["eval.dtype"]
