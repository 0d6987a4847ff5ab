"""Stage two: train the LR student on body images and LR faces, against the cached targets.

Neither the teacher, nor HR faces, nor masks are read here; they need not be on disk (but for a
study of `train_student.live_teacher`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deskpro.cache.sealed import INDEX
from deskpro.stages.base import distributed
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import KIND_OF
from deskpro.stages.base.options import Options
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Dep, Job, Result, Stage
from deskpro.stages.data.layouts import image_folders
from deskpro.stages.losses.terms import (
    OTHER_TEACHERS,
    TERMS,
    active_terms,
    params,
    targets_needed,
    usable,
)
from deskpro.stages.targets.kinds import all_targets, stored_targets

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from deskpro.cache.store import TargetStore
    from deskpro.stages.data.check import CheckedData
    from deskpro.stages.models.student import Student
    from deskpro.stages.training.recipe import Streams, Tensors, TrainingSet


@dataclass(frozen=True)
class TrainStudentResult(Result):
    """samples, identities: used for training; source: the cache or the data; targets: where they
    were read, if any; training: as `recipe.train` gives; macs: multiply-adds a sample."""

    samples: int
    identities: int
    source: str
    targets: str
    training: Mapping[str, Any]
    parameters: int
    macs: int
    path: Path


class TrainStudent(Stage):
    """Trains the student on the samples and views of the cache."""

    name = "train-student"
    params = (
        "batchid",
        "batchimage",
        "data_train",
        "data.name",
        "data.incomplete",
        "data.validation",
        "data.identities",
        "data.face_size",
        "data.body_size",
        "views",
        "cache.views",
        "cache.plain_view",
        "cache.precision",
        "student",
        "train_student",
        "forward_mode",
        "mse.spatial_attn_lr",
        "kd_loss.class_means",
        *sorted(params(TERMS.values())),
        *OTHER_TEACHERS,
    )
    distributed = True

    def __init__(self, options: Options, folder: RunFolder, only: str | None = None) -> None:
        """Train the student of a recipe, or one stream of it as it would be trained beside the
        other, for `JoinStreams`: they share no parameters, and their losses add."""
        super().__init__(options, folder)
        self.mode = only or options.forward_mode
        self.streams = (only,) if only else options.streams

    @property
    def cache(self) -> Path | None:
        """The targets; None for a student that uses none.

        A student of another run's targets takes their samples and views even so: it is compared
        with students that use them.
        """
        needed = targets_needed(self.options, self.streams)
        used = needed or self.folder.source is not None
        return self.folder.targets if used else None

    @property
    def teacher(self) -> Path:
        return self.options.pre_train or self.folder.teacher

    def upstream(self) -> str | None:
        if self.cache is not None:
            return "teacher-cache"
        return None if self.options.prepare is None else "prepare"

    def deps(self) -> list[Dep]:
        options, found = self.options, []
        if self.cache is not None:
            targets, needed = all_targets(options), targets_needed(options, self.streams)
            found.append(Dep("the cache", self.cache / INDEX))
            found += [
                Dep(f"the cache's {name}", self.cache / targets[name].group / INDEX)
                for name in sorted(needed)
            ]
        if options.student.pre_train is not None:
            found.append(Dep("student.pre_train", options.student.pre_train))
        kinds = [*KIND_OF.values()]
        folders = image_folders(options.data.root, options.train_set, kinds, ("train",))
        if self._unlabelled is not None:
            folders |= {
                f"{kind} without labels": (self._unlabelled / kind, "**/*") for kind in kinds
            }
        return found + [Dep(role, *place) for role, place in folders.items()]

    @property
    def _unlabelled(self) -> Path | None:
        """The folder of images without labels, where it is trained on any."""
        options = self.options
        return options.data.unlabelled if options.train_student.unlabelled else None

    def check(self) -> None:
        options, name = self.options, "train_student.unlabelled"
        if options.train_student.live_teacher and options.kd_loss.class_means:
            raise InputError(
                "kd_loss.class_means: the means are of cached logits; train_student.live_teacher "
                "must be false"
            )
        if not options.train_student.unlabelled:
            return
        if options.data.unlabelled is None:
            raise InputError(f"{name}: there are no images without labels; set data.unlabelled")
        if not targets_needed(options, self.streams):
            raise InputError(
                f"{name}: without labels only a teacher's targets can be learned, and no loss uses "
                f"any; set the weight of one, or {name} to 0"
            )
        if options.kd_loss.class_means:
            raise InputError(f"{name}: kd_loss.class_means has no class for images without labels")

    def outs(self) -> list[Path]:
        return [self.folder.student]

    def scratch(self) -> list[Path]:
        return [self.folder.checkpoints("student")]

    def run(self, job: Job) -> Result:
        from deskpro.stages.targets.provenance import remedies

        with remedies(self.folder.targets, self.options):
            return self._train(job)

    def _train(self, job: Job) -> Result:
        import torch

        from deskpro.stages.evaluation.validation import Validation
        from deskpro.stages.models.student import Student, multiply_adds
        from deskpro.stages.models.warm_start import require_weights, warm_start
        from deskpro.stages.targets import samples
        from deskpro.stages.training import recipe

        require_weights("student.pre_train", self.options.student.pre_train)
        options = self.options
        device = distributed.pick_device(options.device)
        data = self._drawn(job) if self.cache is None else self._from_cache(self.cache, job, device)
        torch.manual_seed(options.train_student.seed)
        arguments = {"forward_mode": self.mode, **options.student.arguments}
        student = Student(len(data.classes), **arguments)
        start = options.student.pre_train
        started = None if start is None else warm_start(student, start, data.classes).facts(start)
        attention = [p for name, p in student.named_parameters() if ".spatial_attn." in name]
        shapes = {"face": options.data.face_size, "body": options.data.body_size}
        blank = [torch.zeros(1, 3, *shapes[s]) if s in self.streams else None for s in shapes]
        macs = multiply_adds(student, *blank)
        parameters = sum(parameter.numel() for parameter in student.parameters())
        for name, (stream, shape) in data.projected.items():
            student.project(stream, name, shape)
        validation = None
        if options.data.validation:
            assert data.held_out is not None
            validation = Validation.of(student, data.held_out, options, device)
        setup = recipe.Setup(
            kind="student",
            options=options,
            network=student,
            arguments=arguments,
            start=started,
            data=data,
            device=device,
            images={stream: KIND_OF[stream] for stream in self.streams},
            sampled={stream: KIND_OF[stream] for stream in options.streams},
            call=_streams(student),
            terms=active_terms(options, self.streams),
            folder=self.folder,
            metrics=_agreement(options, student),
            image=_attention_image(options),
            scaled=(attention, options.mse.spatial_attn_lr),
            validate=validation and validation.measure,
            learn=lambda: {} if validation is None else validation.facts(),
        )
        training = recipe.train(setup, job)
        return TrainStudentResult(
            samples=int((data.labels >= 0).sum()),
            identities=len(data.classes),
            source=samples.origin(self.cache) if self.cache else f"{options.data.root}",
            targets=data.targets.location if data.targets else "",
            training=training,
            parameters=parameters,
            macs=macs,
            path=self.folder.student,
        )

    def _from_cache(self, cache: Path, job: Job, device: torch.device) -> TrainingSet:
        """The samples and views of the cache, in its order."""
        from deskpro.cache.store import TargetStore
        from deskpro.stages.data.identities import HELD_OUT
        from deskpro.stages.data.views import DrawnViews
        from deskpro.stages.models.lmbn import head_names
        from deskpro.stages.targets import samples
        from deskpro.stages.targets.teachers import open_teacher
        from deskpro.stages.training.recipe import TrainingSet

        options, recipe = self.options, self.options.train_student
        store, learned = TargetStore(cache), sorted(targets_needed(options, self.streams))
        finished = samples.finished(store, all_targets(options))
        with distributed.rank_zero_first():
            samples.require_targets(store, learned, options, options.student.feature_dim)
            own = {name: finished[name] for name in stored_targets(options) if name in finished}
            # The groups whose samples and views are trained on, also where no target is learned.
            groups = {name: finished[name] for name in learned} or own or finished
            files = job.index, job.deep
            samples.require_match(store, options, self.teacher, groups.values(), *files)
            samples.require_heads(store, learned, options, len(head_names(options.student.heads)))
            checked = self._checked("keep", job)  # the cache says which samples are used
        readers = samples.readers(cache, groups, finished)
        trained = samples.used_rows(store, unlabelled=self._unlabelled is not None)
        valid = {name: reader.valid & trained for name, reader in readers.items()}
        needed = self._needed(trained, valid)
        table = samples.in_order(samples.with_unlabelled(checked), store, needed)
        classes, labels = samples.classes_and_labels(store, table, readers, options.train_set)
        views, count = self._views(store)
        samples.warn_of_few_views({name: readers[name] for name in learned}, count)
        if recipe.fresh_views:
            views, count = DrawnViews(options.views, table["sample_id"].tolist()), recipe.epochs
        targets = open_teacher(options, self.teacher, cache, learned, device) if learned else None
        held_out = checked.split(HELD_OUT)
        projected = samples.embedding_shapes(store, options, learned)
        return TrainingSet(table, labels, classes, views, count, targets, held_out, projected)

    def _views(self, store: TargetStore) -> tuple[Callable[[int, int], Any], int]:
        """The views of a cache that are trained on, and how many of each sample."""
        from deskpro.stages.data.views import StoredViews

        # Targets of more views may lie beside those of the recipe.
        stored = store.column("views")[:, : self.options.cache.views]
        most = stored.shape[1]
        count = self.options.train_student.views or most
        if count > most:
            raise InputError(
                f"train_student.views: {count} is more than the {most} views of {store.root}",
                command=f"teacher-cache --set cache.views={count}",
            )
        return StoredViews(stored), count

    def _needed(self, trained: np.ndarray, valid: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Kind of image → the samples of the cache that must have it, bool [N].

        trained: the samples that are trained on; valid: target → those of them that have it.
        """
        options, every = self.options, all_targets(self.options)
        kinds = {"imgs": trained}
        faces = [rows for name, rows in valid.items() if "hr_face" in every[name].sees]
        if faces and "face" in options.streams and options.data.incomplete != "keep":
            kinds["lr_face"] = faces[0]
        if options.train_student.live_teacher:
            learned = sorted(targets_needed(options, self.streams))
            kinds |= {kind: valid[name] for name in learned for kind in every[name].sees}
        return kinds

    def _drawn(self, job: Job) -> TrainingSet:
        """The training samples themselves, for a student without targets: views as of a cache."""
        from deskpro.stages.data.identities import HELD_OUT
        from deskpro.stages.data.views import DrawnViews, StoredViews
        from deskpro.stages.training.recipe import training_set

        options = self.options
        with distributed.rank_zero_first():
            checked = self._checked(options.data.incomplete, job)
        table = checked.split("train")
        drawn = DrawnViews(options.views, table["sample_id"].tolist(), options.cache.plain_view)
        stored = StoredViews(drawn.table(options.cache.views))
        found = training_set(table, stored, options.cache.views)
        return replace(found, held_out=checked.split(HELD_OUT))

    def _checked(self, incomplete: str, job: Job) -> CheckedData:
        """The training samples that have every image that the student sees."""
        from deskpro.stages.data.check import check_data
        from deskpro.stages.data.identities import Identities
        from deskpro.stages.targets.provenance import kinds_seen

        options, every = self.options, all_targets(self.options)
        seen = [KIND_OF[stream] for stream in options.streams]
        if options.train_student.live_teacher:
            seen += kinds_seen(every[name] for name in targets_needed(options, self.streams))
        return check_data(
            options.data.root,
            options.train_set,
            splits=("train",),
            needs=tuple(dict.fromkeys(("imgs", *seen))),
            incomplete=incomplete,
            identities=Identities(*options.data.chosen),
            unlabelled=self._unlabelled,
            index=job.index,
        ).require()


def _streams(student: Student) -> Callable[[nn.Module, Tensors, Tensors], Streams]:
    """Runs the student on its streams' images; each stream's share of the heads."""

    def call(forward: nn.Module, images: Tensors, present: Tensors) -> Streams:
        output = forward(images.get("face"), images.get("body"), present.get("face"))
        return {
            stream: output._replace(
                logits=output.logits[:, heads],
                features=output.features[:, heads],
                before_neck=output.before_neck[:, student.triplet[stream]],
            )
            for stream, heads in student.heads.items()
        }

    return call


def _agreement(
    options: Options, student: Student
) -> Callable[[Streams, Tensors, Tensors], Tensors]:
    """How far the face stream agrees with the teacher's logits, where it is trained on them."""
    from deskpro.stages.losses.agreement import agreement

    def metrics(outputs: Streams, targets: Tensors, valid: Tensors) -> Tensors:
        heads, has = student.streams["face"].heads, usable(TERMS["kd"], valid)
        pair = outputs["face"].logits, targets["logits"]
        if has is not None:
            rows = has.nonzero().flatten().to(pair[0].device)
            pair = pair[0][rows], pair[1][rows]
        return agreement(*pair, options.kd_loss.T, heads, options.kd_loss.zscore)

    uses_logits = "logits" in targets_needed(options, student.streams)
    return metrics if uses_logits else lambda outputs, targets, valid: {}


def _attention_image(
    options: Options,
) -> Callable[[Mapping[str, Any], Streams, Tensors], torch.Tensor | None]:
    """Bodies, the student's attention and its target, a row for each of 8 samples."""
    from deskpro.stages.data.overlay import side_by_side
    from deskpro.stages.losses.attention import attention_target

    def image(batch: Mapping[str, Any], outputs: Streams, targets: Tensors) -> torch.Tensor | None:
        if "body" not in outputs or "parsing" not in targets:
            return None
        attention = outputs["body"].attention
        assert attention is not None
        target = attention_target(targets["parsing"][:8].cpu(), options.mse.floor)
        return side_by_side(batch["imgs"][:8].cpu(), attention.detach()[:8].float().cpu(), target)

    return image
