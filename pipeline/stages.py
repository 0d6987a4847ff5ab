"""The stages by name, in order.

To add one: its module, and its row in `STAGES`; its help's section and example: `command_help.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from deskpro.stages.base.options import Options
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Stage
from deskpro.stages.losses.terms import targets_needed
from deskpro.stages.targets.kinds import needs_teacher


class Row(NamedTuple):
    """A stage: the path of its class, so that a command imports only what it runs, and its help."""

    path: str
    help: str


STAGES = {
    "prepare": Row(
        "deskpro.stages.prepare:PrepareData", "Make masks, LR and HR faces from a raw dataset."
    ),
    "train-teacher": Row(
        "deskpro.stages.train_teacher:TrainTeacher",
        "Train the teacher, where no weights exist.",
    ),
    "teacher-cache": Row(
        "deskpro.stages.teacher_cache:TeacherCache",
        "Stage one: run the teacher once, cache its targets.",
    ),
    "train-student": Row(
        "deskpro.stages.train_student:TrainStudent",
        "Stage two: train the LR student from the cache.",
    ),
    "eval": Row(
        "deskpro.stages.evaluate:Evaluate", "Evaluate the student: mAP and CMC by every protocol."
    ),
}
"""The stages in their order; each is a command of that name."""


def stage_class(name: str) -> type[Stage]:
    """The class of a stage."""
    module, _, class_name = STAGES[name].path.partition(":")
    found: type[Stage] = getattr(import_module(module), class_name)
    return found


def make(name: str, options: Options, folder: RunFolder) -> Stage:
    """A stage of a run."""
    return stage_class(name)(options, folder)


def needed(options: Options, *, given: bool = False) -> list[str]:
    """The stages that a recipe needs, in order; given: its cache was unpacked, not made here."""
    skipped = {"prepare"} if options.prepare is None else set()
    targets = targets_needed(options, options.streams)
    if not targets:
        skipped |= {"teacher-cache"}
    made = targets and not given and needs_teacher(options)
    of_teacher = made or options.eval.gallery_network == "teacher"
    if not of_teacher or options.pre_train is not None:
        skipped |= {"train-teacher"}
    return [name for name in STAGES if name not in skipped]
