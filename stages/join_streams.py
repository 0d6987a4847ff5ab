"""Make one student of streams that were trained apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deskpro.stages.base import distributed
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Dep, Job, Result, Stage

if TYPE_CHECKING:
    from deskpro.stages.models.student import Student


@dataclass(frozen=True)
class JoinStreamsResult(Result):
    """parameters: of the student."""

    parameters: int
    student: Path


class JoinStreams(Stage):
    """Joins the face stream and the body stream of two students, as `TrainStudent` of one stream
    of a recipe leaves them: the student is the one that trains both side by side."""

    name = "join-streams"
    params = (
        "forward_mode", "data.validation", "data.identities", "data.incomplete", "data_train",
        "data.name",
    )  # fmt: skip

    def __init__(self, options: Options, folder: RunFolder, parts: Mapping[str, Path]) -> None:
        """parts: stream → the weights of a student that has it."""
        super().__init__(options, folder)
        self.parts = parts

    def deps(self) -> list[Dep]:
        return [Dep(f"the {stream} stream", path) for stream, path in self.parts.items()]

    def outs(self) -> list[Path]:
        return [self.folder.student]

    def run(self, job: Job) -> Result:
        from deskpro.stages.models.student import Student
        from deskpro.stages.models.weights import load_student, save

        found = {stream: load_student(path) for stream, path in self.parts.items()}
        infos = [info for _, info in found.values()]
        if any(info.classes != infos[0].classes for info in infos):
            paths = " and ".join(map(str, self.parts.values()))
            raise InputError(f"{paths}: were trained on different identities")
        arguments = {**infos[0].network, "forward_mode": self.options.forward_mode}
        student = Student(infos[0].num_classes, **arguments)
        for stream, network in student.streams.items():
            network.load_state_dict(found[stream][0].streams[stream].state_dict())
        info = replace(
            infos[0],
            network=arguments,
            body_size=infos[-1].body_size,
            **self._facts(student, job),
        )
        save(self.folder.student, student, info)
        parameters = sum(parameter.numel() for parameter in student.parameters())
        return JoinStreamsResult(parameters, self.folder.student)

    def _facts(self, student: Student, job: Job) -> dict[str, Any]:
        """What held-out identities tell of both streams together, by field of `ModelInfo`."""
        from deskpro.stages.evaluation.validation import Validation, read_training

        options = self.options
        if not options.data.validation:
            return {"fusion": None, "calibration": None}
        device = distributed.pick_device(options.device)
        _, held_out = read_training(options, ("imgs", "lr_face"), job.index)
        return Validation.of(student.to(device).eval(), held_out, options, device).facts()
