"""Evaluate a student (or a teacher): features of query and gallery, scored by every protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deskpro.cache.files import sha256
from deskpro.stages.base import distributed
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import FEATURES
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import start
from deskpro.stages.base.run_folder import ENCODER, RunFolder, read_manifest
from deskpro.stages.base.stage import Dep, Job, Result, Stage
from deskpro.stages.data.layouts import image_folders, layout_of, require_bodies
from deskpro.stages.evaluation.asymmetric import refuse_options, require_hr_faces, require_teacher
from deskpro.stages.losses.terms import targets_needed
from deskpro.stages.targets.kinds import needs_teacher

if TYPE_CHECKING:
    import pandas as pd

    from deskpro.stages.evaluation.feature_store import FeatureStore
    from deskpro.stages.models.extractor import FeatureExtractor


@dataclass(frozen=True)
class EvaluateResult(Result):
    """rules: of the protocols; kept: blocks of features that were there, of `blocks`; of_teacher:
    what was done for the gallery's features by the teacher, if any; attention: as metrics.json has
    it; without_face: split → images, empty without a face stream; skipped: protocol → queries
    without a positive."""

    rules: Sequence[str]
    kept: int
    blocks: int
    features: Path
    of_teacher: Mapping[str, Any]
    attention: Mapping[str, Any] | None
    without_face: Mapping[str, int]
    skipped: Mapping[str, int]
    metrics: Path


class Evaluate(Stage):
    """Evaluates a student (or a teacher) by every protocol of the dataset."""

    name = "eval"
    params = (
        "data_train",
        "data.name",
        "data_test",
        "data.face_size",
        "data.body_size",
        "eval.protocols",
        "eval.face_weight",
        "eval.rerank",
        "eval.enrich",
        "eval.flip",
        "eval.ranks",
        "eval.gallery_network",
        "eval.unit",
    )
    incremental = True

    def __init__(
        self,
        options: Options,
        folder: RunFolder,
        weights: Path | None = None,
        kind: str | None = None,
    ) -> None:
        """Evaluate the run's student, or the network of a weights file alone.

        Args:
            options: of the recipe.
            folder: where the scores go.
            weights: another network than the run's student.
            kind: student or teacher, where the weights file holds both.
        """
        super().__init__(options, folder)
        self.alone = weights is not None
        self.weights = weights or folder.student
        self.kind = kind if self.alone else "student"

    @property
    def dataset(self) -> str:
        return self.options.test_set

    @property
    def teacher(self) -> Path | None:
        """The weights of the teacher that sees the gallery; None where the student does."""
        own = self.options.pre_train or self.folder.teacher
        return own if self.options.eval.gallery_network == "teacher" else None

    def upstream(self) -> str | None:
        return None if self.alone else "train-student"

    def check(self) -> None:
        require_bodies(self.options.test_root, self.dataset)
        if self.teacher is not None and self.options.eval.unit == "tracklet":
            raise InputError(
                "eval.gallery_network: teacher ranks images. Turn one of them off",
                command="eval --set eval.unit=picture",
            )
        record = read_manifest(self.folder.manifest(self.name)) or {"deps": {}}
        if FEATURES in record["deps"]:
            file = record["result"].get("file")
            raise InputError(
                f"{self.folder.path}: holds the evaluation of features, {file}. Give them with "
                "--features, or another folder with --run"
            )
        if self.teacher is not None:
            refuse_options(self.options, alone=self.weights != self.folder.student)
            if not self.folder.metrics.exists() and not self._makes_teacher():
                require_teacher(self.teacher, self.options)

    def _makes_teacher(self) -> bool:
        """Whether the stages before it are about to train the teacher."""
        options, done = self.options, self.alone or self.folder.student.exists()
        made = not done and options.pre_train is None
        return made and bool(targets_needed(options, options.streams)) and needs_teacher(options)

    def deps(self) -> list[Dep]:
        root, dataset = self.options.test_root, self.dataset
        # A teacher sees HR faces.
        kinds = ("imgs", "lr_face", "hr_face") if self.alone else ("imgs", "lr_face")
        folders = image_folders(root, dataset, kinds, ("query", "gallery"))
        if self._may_attend():
            folders |= image_folders(root, dataset, ("mask",), ("query",))
        if self.teacher is not None:
            folders |= image_folders(root, dataset, ("hr_face",), ("gallery",))
        return [
            Dep("the network" if self.alone else "the student", self.weights),
            *(Dep("the teacher", path) for path in (self.teacher,) if path is not None),
            *(
                Dep(name, root / name)
                for name in layout_of(root, dataset).side_files
                if name not in folders
            ),
            *(Dep(role, *place) for role, place in folders.items()),
        ]

    def _may_attend(self) -> bool:
        """Whether it may have an attention, which the queries' masks are compared with."""
        if self.alone:
            return self.kind != "teacher" and self.weights.name != ENCODER
        return "body" in self.options.streams

    def outs(self) -> list[Path]:
        return [self.folder.metrics]

    def run(self, job: Job) -> Result:
        """Rank the gallery for every query, by each protocol and stream."""
        import pandas as pd

        from deskpro.stages.evaluation.feature_store import FeatureStore, store_features
        from deskpro.stages.evaluation.gallery import TeacherGallery, open_gallery_teacher
        from deskpro.stages.evaluation.measures import measures_of
        from deskpro.stages.evaluation.scoring import choose_protocols, count_images, score, split
        from deskpro.stages.evaluation.tracklets import Pooled, pool_tracklets
        from deskpro.stages.evaluation.transductive import require_faces
        from deskpro.stages.models.extractor import open_extractor

        options, folder = self.options, self.folder
        device = distributed.pick_device(options.device)
        sizes = options.data.face_size, options.data.body_size
        extractor = open_extractor(self.weights, self.kind, *sizes, device)
        extractor = extractor.fitted_for(options.eval.flip)
        require_faces(options, [*extractor.heads])
        teacher = open_gallery_teacher(self.teacher, extractor, options, device)
        query, gallery = self._images(extractor, job)
        protocols = choose_protocols(options, query, gallery)
        images = pd.concat([query, gallery], ignore_index=True)
        start(self.name, device=device, samples=len(images), output=folder.metrics)
        made_of = extractor, self.weights, images, options, job.index
        made = store_features(folder.features, *made_of, scores=folder.metrics)
        budget = options.cache.memory * 1e9
        stored = FeatureStore(folder.features, device, budget)
        # In the order of their contents: then no number depends on file names.
        images = images.assign(row=made.rows).sort_values(["row", "sample_id"], ignore_index=True)
        faces = [kind for stream, kind in extractor.kinds.items() if stream == "face"]
        about = self._about(extractor, stored, images.sort_values("sample_id"), faces, job)
        if options.eval.unit == "tracklet":
            images, members = pool_tracklets(images, [*extractor.kinds.values()])
            stored = Pooled(stored, members)
            images = images.assign(row=stored.rows)
            about["data"] |= count_images(images, faces)
        query, gallery = split(images)
        seen = None
        if teacher is not None and self.teacher is not None:
            source = teacher, self.teacher, gallery, options, job.index
            seen = TeacherGallery.of(folder.gallery_features, *source, budget - stored.resident)
            gallery = seen.table
            about["gallery_network"] = _network(self.teacher, teacher)
            about["data"]["digests"] |= seen.digests()
            about["data"]["without HR face"] = seen.without_face
        measures = measures_of(extractor, stored, options.eval.face_weight, seen and seen.stored)
        if options.eval.unit == "tracklet":  # what scores mean was fitted on images
            measures = {name: each._replace(calibration={}) for name, each in measures.items()}
        report = score(about, options, measures, protocols, query, gallery, faces, folder.metrics)
        return EvaluateResult(
            rules=[part["rule"] for part in report["protocols"].values()],
            kept=made.kept,
            blocks=made.blocks,
            features=folder.features,
            of_teacher=seen.facts() if seen else {},
            attention=about["attention"],
            without_face=report["data"]["without face"],
            skipped={name: part["skipped"] for name, part in report["protocols"].items()},
            metrics=folder.metrics,
        )

    def _images(self, extractor: FeatureExtractor, job: Job) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The tables of query and gallery."""
        from deskpro.stages.data.check import check_data

        root = self.options.test_root
        checked = check_data(
            root,
            self.dataset,
            splits=("query", "gallery"),
            test_needs=extractor.needs,
            gallery_needs=() if self.teacher is None else ("hr_face",),
            training=False,
            index=job.index,
        ).require()
        query, gallery = checked.split("query"), checked.split("gallery")
        if self.teacher is not None:
            require_hr_faces(gallery, root)
        return query, gallery

    def _about(
        self,
        extractor: FeatureExtractor,
        stored: FeatureStore,
        images: pd.DataFrame,
        faces: Sequence[str],
        job: Job,
    ) -> dict[str, Any]:
        """What metrics.json holds beside the scores."""
        from deskpro.stages.evaluation.attention import score_attention
        from deskpro.stages.evaluation.scoring import about_data, split

        settings, rows = self.options.eval, images["row"].to_numpy()
        contents = {kind: found[rows] for kind, found in stored.contents().items()}
        attention = None
        if self._may_attend():
            made = self.folder.attention, extractor, self.weights
            attention = score_attention(
                *made, split(images)[0], self.options, job.index, stored.device
            )
        return {
            "network": _network(self.weights, extractor),
            "gallery_network": None,
            "attention": attention,
            "data": about_data(self.options, images, contents, faces),
            "flip": settings.flip,
            "face_weight": settings.face_weight,
            "fusion": extractor.info.fusion if settings.face_weight == "fitted" else None,
        }


def _network(weights: Path, extractor: FeatureExtractor) -> dict[str, str]:
    """Which weights, as metrics.json has it."""
    return {"file": weights.name, "sha256": sha256(weights), "kind": extractor.info.kind}
