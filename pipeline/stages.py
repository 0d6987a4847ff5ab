"""The stages by name, in order."""

from __future__ import annotations

from importlib import import_module

from deskpro.stages.base.options import Options
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Stage
from deskpro.stages.losses.terms import targets_needed

STAGES = {
    "prepare": "deskpro.stages.prepare:PrepareData",
    "train-teacher": "deskpro.stages.train_teacher:TrainTeacher",
    "teacher-cache": "deskpro.stages.teacher_cache:TeacherCache",
    "train-student": "deskpro.stages.train_student:TrainStudent",
    "eval": "deskpro.stages.evaluate:Evaluate",
}
"""Stage → the path of its class; a path, so that a command imports only the stages it runs."""


def stage_class(name: str) -> type[Stage]:
    """The class of a stage."""
    module, _, class_name = STAGES[name].partition(":")
    found: type[Stage] = getattr(import_module(module), class_name)
    return found


def make(name: str, options: Options, folder: RunFolder) -> Stage:
    """A stage of a run."""
    return stage_class(name)(options, folder)


def needed(options: Options) -> list[str]:
    """The stages that a recipe needs, in order."""
    skipped = {"prepare"} if options.prepare is None else set()
    if not targets_needed(options, options.streams):
        skipped |= {"train-teacher", "teacher-cache"}
    elif options.pre_train is not None:
        skipped |= {"train-teacher"}
    return [name for name in STAGES if name not in skipped]
