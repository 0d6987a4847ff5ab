"""Train a teacher on HR faces, where there is none: cross-entropy and batch-hard triplet loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deskpro.stages.base import distributed
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Dep, Digests, Job, Reason, Result, Stage
from deskpro.stages.data.layouts import KINDS, image_folders
from deskpro.stages.losses.terms import teacher_terms


@dataclass(frozen=True)
class TrainTeacherResult(Result):
    """data: what was used, as `CheckedData.facts` gives it; training: as `recipe.train` gives."""

    data: Mapping[str, Any]
    training: Mapping[str, Any]
    path: Path


class TrainTeacher(Stage):
    """Trains the teacher on every training sample with an HR face."""

    name = "train-teacher"
    params = (
        "data_train",
        "data.name",
        "data.incomplete",
        "data.validation",
        "data.identities",
        "data.face_size",
        "teacher",
        "train_teacher",
    )
    distributed = True

    @property
    def home(self) -> RunFolder:
        return RunFolder(self.folder.upstream)

    def upstream(self) -> str | None:
        return None if self.options.prepare is None else "prepare"

    def _images(self) -> list[Dep]:
        """All kinds: which samples and identities are used depends on all four."""
        options = self.options
        folders = image_folders(options.data.root, options.train_set, KINDS, ("train",))
        return [Dep(role, *place) for role, place in folders.items()]

    def deps(self) -> list[Dep]:
        start = self.options.teacher.pre_train
        return self._images() + ([] if start is None else [Dep("teacher.pre_train", start)])

    def outs(self) -> list[Path]:
        return [self.folder.teacher]

    def scratch(self) -> list[Path]:
        return [self.folder.checkpoints("teacher")]

    def stale(self, record: Mapping[str, Any] | None, digests: Digests) -> list[Reason]:
        """Other images are a notice: a teacher of other images still teaches."""
        images = {dep.role for dep in self._images()}
        return [
            reason._replace(effect="notice") if reason.name in images else reason
            for reason in super().stale(record, digests)
        ]

    def run(self, job: Job) -> Result:
        import torch

        from deskpro.stages.data.check import check_data
        from deskpro.stages.data.identities import Identities
        from deskpro.stages.data.index import class_order
        from deskpro.stages.data.views import DrawnViews
        from deskpro.stages.models.backbones import map_size
        from deskpro.stages.models.lmbn import LMBN
        from deskpro.stages.models.warm_start import require_weights, warm_start
        from deskpro.stages.training import recipe

        require_weights("teacher.pre_train", self.options.teacher.pre_train)
        options, settings = self.options, self.options.train_teacher
        device = distributed.pick_device(options.device)
        with distributed.rank_zero_first():
            # All kinds and splits: nothing must be found wrong after hours of work.
            incomplete = options.data.incomplete
            root, dataset = options.data.root, options.train_set
            checked = check_data(
                root,
                dataset,
                incomplete=incomplete,
                identities=Identities(*options.data.chosen),
                index=job.index,
            ).require()
        table = checked.split("train")
        # Its classes are those of the student, who may know somebody by the body alone.
        classes = class_order(table["pid"])
        table = table[table["hr_face"].notna()].reset_index(drop=True)
        views = DrawnViews(settings.views, table["sample_id"].tolist())
        data = recipe.training_set(table, views, settings.epochs, classes)
        torch.manual_seed(settings.seed)
        network = LMBN(len(data.classes), **options.teacher.arguments)
        # Refuses what the backbone cannot take.
        map_size(network.backbone_name, options.data.face_size)
        start = options.teacher.pre_train
        setup = recipe.Setup(
            kind="teacher",
            options=options,
            network=network,
            arguments=options.teacher.arguments,
            start=None if start is None else warm_start(network, start, data.classes).facts(start),
            data=data,
            device=device,
            images={"face": "hr_face"},
            call=lambda forward, images, present: {"face": forward(images["face"])},
            terms=teacher_terms(),
            folder=self.folder,
        )
        training = recipe.train(setup, job)
        if distributed.is_main():
            checked.write_left_out(self.folder.left_out)
        return TrainTeacherResult(
            checked.facts(self.folder.left_out), training, self.folder.teacher
        )
